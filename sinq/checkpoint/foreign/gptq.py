"""GPTQ checkpoints (AutoGPTQ, GPTQModel), versions 1 and 2: bits 2, 3, 4 and 8.

    qweight int32 (in · bits / 32, out)      the codes of a column are one stream of bits
    qzeros  int32 (in / group, out · bits / 32)
    scales  (in / group, out)                W = (code − zero) · scale
    g_idx   int32 (in,)                      the group of each input, present also where it is in order

Version 1 stores zero − 1, in its bits: a zero of 0 is stored as 2^bits − 1 and read as 0 again, as AutoGPTQ
does; readers that do not mask the sum read 2^bits there. Such zeros are counted in the notes of the value.
Version 2 stores the zero itself. A model may have other bits and groups in some layers (`dynamic`), so both
are taken from the shapes of each layer.

With `desc_act` a group is a set of inputs anywhere in the matrix. Not covered: such groups, and the layouts
of single kernels (Marlin, `gptq_p`); all are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.checkpoint.foreign.base import (
    ForeignFormat,
    group_word,
    matrix,
    require,
    stated_number,
)
from sinq.checkpoint.foreign.parts import Parts, unpack_words
from sinq.common.reading import shown

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
WORDS = (torch.int32,)
VERSIONS = {"gptq": 1, "gptq_v2": 2}
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GPTQ(ForeignFormat):
    """The format of GPTQ's tools."""

    codes: ClassVar[str] = "qweight"
    others: ClassVar[tuple[str, ...]] = ("qzeros", "scales", "g_idx")

    bits: int
    """Bits of most layers."""
    group_size: int
    """−1 for whole rows."""
    version: int

    @classmethod
    def stated(cls, folder: Path, options: Mapping[str, Any]) -> Self:
        layout = options.get("checkpoint_format") or options.get("format") or "gptq"
        if layout not in VERSIONS:
            raise ValueError(f"checkpoint_format is {shown(layout)}; gptq and gptq_v2 are read")
        bits = stated_number(options, "bits")
        if bits not in BITS:
            raise ValueError(f"bits is {bits}; {', '.join(map(str, BITS))} are read")
        return cls(bits, stated_number(options, "group_size", -1), VERSIONS[layout])

    @property
    def label(self) -> str:
        return f"gptq {self.bits}-bit {group_word(self.group_size)}"

    def decode(self, layer: str, tensors: Mapping[str, Tensor]) -> Parts:
        words = matrix(tensors, "qweight", WORDS, None, None)
        rows = words.shape[1]
        scales = matrix(tensors, "scales", FLOATS, None, rows)
        columns, bits = self._columns(tensors, words)
        zeros = matrix(tensors, "qzeros", WORDS, len(scales), -(-rows * bits // 32))
        _require_order(tensors, columns, len(scales))
        zero, notes = self._zero(unpack_words(zeros, bits, rows), bits)
        return Parts(bits, unpack_words(words.T, bits, columns), scales.T, zero.T, notes=notes)

    def _columns(self, tensors: Mapping[str, Tensor], words: Tensor) -> tuple[int, int]:
        """Return the inputs and the bits of a layer, from the number of words."""
        if "g_idx" not in tensors:
            return 32 * len(words) // self.bits, self.bits
        columns = tensors["g_idx"].numel()
        for bits in BITS:
            if 32 * len(words) == columns * bits:
                return columns, bits
        raise ValueError(f"qweight has {len(words)} rows of words for {columns} inputs, which fits no bits")

    def _zero(self, stored: Tensor, bits: int) -> tuple[Tensor, dict[str, float]]:
        """Return zeros (groups, out) as numbers, and how many were stored by wrapping around."""
        if self.version == 2:
            return stored, {}
        last = (1 << bits) - 1
        wrapped = int((stored == last).sum())
        return (stored + 1) & last, {"wrapped_zeros": wrapped} if wrapped else {}


def _require_order(tensors: Mapping[str, Tensor], columns: int, groups: int) -> None:
    """Raise `ValueError` if groups are not consecutive inputs."""
    if "g_idx" not in tensors:
        return
    order = require(tensors, "g_idx")
    if order.shape != (columns,) or columns % groups:
        raise ValueError(f"g_idx is {list(order.shape)}, of {groups} groups; it must be in whole groups")
    expected = torch.arange(columns) // (columns // groups)
    if order.is_floating_point() or not torch.equal(order.long(), expected):
        raise ValueError(
            "g_idx puts inputs that are no neighbours into one group (desc_act=true), which is not read;"
            " choose a checkpoint made with desc_act=false"
        )
