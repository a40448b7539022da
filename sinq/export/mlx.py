"""MLX: uint32 words of codes, scales and biases per group; W = scales · code + biases.

Our stream of codes is theirs, so codes are copied word by word; any zero fits: biases = −zero · scale.
Experts of a layer are stacked, `mlp.switch_mlp.up_proj`. Layers may have different bits and groups.
"""

import re
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
)
from sinq.export.huggingface import Described, FolderExporter
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal
from sinq.export.words import WORD_BITS, int32_words

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
EXPERT = re.compile(r"(?P<mlp>.*)\.experts\.\d+\.(?P<rest>.*)")
"""Pattern of the name of an expert's tensor, or layer."""


@dataclass(frozen=True)
class MLX(FolderExporter):
    """Folder for mlx-lm and LM Studio."""

    name: ClassVar[str] = "mlx"
    read_by: ClassVar[str] = "mlx-lm, LM Studio"

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        return first(
            refuse_columns(view),
            refuse_levels(view),
            refuse_bits(view, BITS),
            refuse_groups(view, GROUPS),
            refuse_sizes(view, columns=WORD_BITS),
            refuse_scales(view, dtype),
        )

    def tensors(self, view: MatrixView, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            f"{view.name}.weight": int32_words(view.codes, view.bits).view(torch.uint32),
            f"{view.name}.scales": view.scale.to(dtype),
            f"{view.name}.biases": (-view.zero * view.scale).to(dtype),
        }

    def arranged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        groups: dict[str, list[Tensor]] = {}
        for name, tensor in tensors.items():
            groups.setdefault(_stacked(name), []).append(tensor)
        of_experts = {_stacked(name) for name in tensors if EXPERT.fullmatch(name)}
        return {
            name: torch.stack(group) if name in of_experts else group[0] for name, group in groups.items()
        }

    def description(
        self, layers: Sequence[Described], dense: Sequence[str], source: Source
    ) -> dict[str, Any]:
        common = {"group_size": layers[0].group_size, "bits": layers[0].bits, "mode": "affine"}
        embedding = next(
            name
            for name, module in source.model.named_modules()
            if module is source.model.get_input_embeddings()
        )
        each = {
            _stacked(layer.name): common | {"group_size": layer.group_size, "bits": layer.bits}
            for layer in layers
        }
        left = dict.fromkeys([embedding, *dense], False)  # which mlx-lm would take for quantized
        return {"quantization": common | each | left}


def _stacked(layer: str) -> str:
    """Return the name under which mlx-lm has a layer."""
    match = EXPERT.fullmatch(layer)
    return layer if match is None else f"{match['mlp']}.switch_mlp.{match['rest']}"
