"""AWQ, layout `gemm`: codes of eight outputs in an int32, in the order of its kernel.

    qweight  int32 (in, out / 8)           nibble k of word c has output 8c + (0, 2, 4, 6, 1, 3, 5, 7)[k]
    qzeros   int32 (in / group, out / 8)   the same of the zeros
    scales   float16 (in / group, out)     W = (code − zero) · scale

4 bits only. vLLM and SGLang read it; AutoAWQ itself is no longer maintained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinq.export.base import (
    first,
    refuse_bits,
    refuse_columns,
    refuse_groups,
    refuse_levels,
    refuse_scales,
    refuse_sizes,
    refuse_zeros,
)
from sinq.export.huggingface import Described, FolderExporter, refuse_mixed
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal
from sinq.export.words import int32_words

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class AWQFolder(FolderExporter):
    """Folder for vLLM, SGLang and AutoAWQ; scales are float16 whatever the dtype."""

    name: ClassVar[str] = "awq"
    read_by: ClassVar[str] = "vLLM, SGLang, AutoAWQ"

    def check_model(self, source: Source) -> Refusal | None:
        return refuse_mixed(source)

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        return first(
            refuse_columns(view),
            refuse_levels(view),
            refuse_bits(view, (4,)),
            refuse_groups(view, GROUPS),
            refuse_sizes(view, rows=len(ORDER)),
            refuse_zeros(view),
            refuse_scales(view, torch.float16),
        )

    def tensors(self, view: MatrixView, dtype: torch.dtype) -> dict[str, Tensor]:
        name = view.name
        return {
            f"{name}.qweight": _words(view.codes.T),
            f"{name}.qzeros": _words(view.zero.T.to(torch.uint8)),
            f"{name}.scales": view.scale.T.to(torch.float16),
        }

    def description(
        self, layers: Sequence[Described], dense: Sequence[str], source: Source
    ) -> dict[str, Any]:
        return {
            "quantization_config": {
                "quant_method": "awq",
                "version": "gemm",
                "bits": 4,
                "group_size": layers[0].group_size,
                "zero_point": True,
                "modules_to_not_convert": list(dense),
            }
        }


def _words(codes: Tensor) -> Tensor:
    """Return 4-bit codes (rows, out) as int32 (rows, out / 8), outputs in the kernel's order."""
    eights = codes.reshape(len(codes), -1, len(ORDER))
    return int32_words(eights[..., ORDER].flatten(1), 4)
