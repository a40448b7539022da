"""AWQ checkpoints of the version `gemm` (AutoAWQ): 4 bits with zeros.

    qweight int32 (in, out / 8)         a word has the codes of eight outputs of one input
    qzeros  int32 (in / group, out / 8)
    scales  (in / group, out)           W = (code − zero) · scale

The codes of a word, from its lowest bits, belong to the outputs 0, 2, 4, 6, 1, 3, 5, 7. Channel scales of AWQ
are folded into the layers before, so nothing else is stored. Not covered: the layouts `gemv` and `marlin`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from sinq.checkpoint.foreign.base import ForeignFormat, group_word, matrix, stated_number
from sinq.checkpoint.foreign.gptq import FLOATS, WORDS
from sinq.checkpoint.foreign.parts import Parts, spaced_words
from sinq.common.reading import shown

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in its word of the code of each of eight outputs."""
BITS = 4


@dataclass(frozen=True)
class AWQGemm(ForeignFormat):
    """The format of AutoAWQ."""

    codes: ClassVar[str] = "qweight"
    others: ClassVar[tuple[str, ...]] = ("qzeros", "scales")

    group_size: int
    """−1 for whole rows."""

    @classmethod
    def stated(cls, folder: Path, options: Mapping[str, Any]) -> Self:
        version = str(options.get("version", "gemm")).lower()
        if version != "gemm":
            raise ValueError(f"version is {shown(options['version'])}; gemm is read")
        if (bits := stated_number(options, "bits", BITS)) != BITS:
            raise ValueError(f"bits is {bits}; {BITS} is read")
        return cls(stated_number(options, "group_size", 128))

    @property
    def label(self) -> str:
        return f"awq {BITS}-bit {group_word(self.group_size)}"

    def decode(self, layer: str, tensors: Mapping[str, Tensor]) -> Parts:
        words = matrix(tensors, "qweight", WORDS, None, None)
        scales = matrix(tensors, "scales", FLOATS, None, 8 * words.shape[1])
        zeros = matrix(tensors, "qzeros", WORDS, len(scales), words.shape[1])
        return Parts(BITS, _outputs(words), scales.T, _outputs(zeros))


def _outputs(words: Tensor) -> Tensor:
    """Return the codes of words (inputs, out / 8) as uint8 (out, inputs)."""
    count = 8 * words.shape[1]
    codes = spaced_words(words, BITS, count).reshape(len(words), -1, 8)
    return codes[:, :, list(ORDER)].reshape(len(words), count).T
