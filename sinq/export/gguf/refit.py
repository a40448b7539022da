"""The format `gguf_q4_k`: 4.5 bits a weight where `gguf` has 5.0, for scales of 6 bits and another rounding.

This is another model than the one that was quantized; its own name says so, and so does the model card.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinq.export.base import first, refuse_sizes
from sinq.export.gguf.blocks import Q4_K, BlockType
from sinq.export.gguf.exporter import Gguf
from sinq.export.gguf.k_quants import refit
from sinq.export.view import MatrixView, Refusal


@dataclass(frozen=True)
class GgufQ4K(Gguf):
    """GGUF with super-blocks of 256 weights (`k_quants.py`)."""

    name: ClassVar[str] = "gguf_q4_k"
    keeps_codes: ClassVar[bool] = False

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        return first(
            super().check(view, dtype), refuse_sizes(view, columns=Q4_K.weights), _refuse_offsets(view)
        )

    def written(self, view: MatrixView) -> Tensor:
        return refit(view).dense()

    def kind(self, view: MatrixView) -> BlockType:
        return Q4_K


def _refuse_offsets(view: MatrixView) -> Refusal | None:
    if view.bits <= 4 and bool((view.zero >= 0).all()):
        return None
    return Refusal("it has more than 4 bits, or zeros below 0, which Q4_K cannot hold", "use format=gguf")
