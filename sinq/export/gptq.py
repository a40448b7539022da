"""GPTQ, second layout (`gptq_v2`): codes along the input in int32, zeros as they are.

    qweight  int32 (in · bits / 32, out)           codes of a column of Wᵀ, a stream down the rows
    qzeros   int32 (in / group, out · bits / 32)   zeros, a stream along each row
    scales   float16 (in / group, out)             W = scales · (code − zero)
    g_idx    int32 (in,)                           group of each input

The first layout stores zero − 1, so a zero of 0 wraps around, and readers disagree about it; only the second
is written. Read by GPTQModel; vLLM reads it where all zeros are centred.
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
from sinq.export.huggingface import Described, FolderExporter, refuse_dense, refuse_mixed
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal
from sinq.export.words import WORD_BITS, int32_words

BITS = (2, 3, 4, 8)
GROUPS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class GPTQFolder(FolderExporter):
    """Folder for GPTQModel and transformers; scales are float16 whatever the dtype."""

    name: ClassVar[str] = "gptq"
    read_by: ClassVar[str] = "GPTQModel, transformers with GPTQModel; vLLM if symmetric"

    def check_model(self, source: Source) -> Refusal | None:
        return first(refuse_mixed(source), refuse_dense(source))

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        return first(
            refuse_columns(view),
            refuse_levels(view),
            refuse_bits(view, BITS),
            refuse_groups(view, GROUPS),
            refuse_sizes(view, rows=WORD_BITS, columns=WORD_BITS),
            refuse_zeros(view),
            refuse_scales(view, torch.float16),
        )

    def tensors(self, view: MatrixView, dtype: torch.dtype) -> dict[str, Tensor]:
        name, zeros = view.name, view.zero.T.to(torch.uint8).contiguous()
        return {
            f"{name}.qweight": int32_words(view.codes, view.bits).T,
            f"{name}.qzeros": int32_words(zeros, view.bits),
            f"{name}.scales": view.scale.T.to(torch.float16),
            f"{name}.g_idx": torch.arange(view.shape[1], dtype=torch.int32) // view.group_size,
        }

    def description(
        self, layers: Sequence[Described], dense: Sequence[str], source: Source
    ) -> dict[str, Any]:
        return {
            "quantization_config": {
                "quant_method": "gptq",
                "bits": layers[0].bits,
                "group_size": layers[0].group_size,
                "sym": all(layer.centred for layer in layers),
                "desc_act": False,
                "checkpoint_format": "gptq_v2",
                "format": "gptq_v2",
                "pack_dtype": "int32",
                "lm_head": False,
                "true_sequential": False,
                "meta": {"quantizer": ["sinq-harness"]},
            }
        }
