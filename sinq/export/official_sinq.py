"""The official SINQ package (0.2): codes with both scales, 2 to 6 bits, 1-D and 2-D tiling, NF4 and NF3.

    W_q          codes, as rows of one group each, several rows in a word
    meta.scale   (out·in/g, 1), or with 2-D tiling (tiles, g, 1); meta.zero likewise
    meta.scale2  (1, in), or (tiles, 1, g): the column scales
                 W = (level(code) − zero) · scale · scale2

What is no tensor is in `model.safetensors.index.json.meta.json`. The package also wants the buffers that a
model computes (`rotary_emb.inv_freq`) among its tensors. Its loader has no packing for 8 bits.
`checkpoint/foreign/official_sinq.py` reads the format, and says more about it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from sinq.checkpoint.foreign.official_sinq import PACKINGS, SIDECAR, Packing
from sinq.checkpoint.weight_files import INDEX
from sinq.common.progress import Progress, silent
from sinq.export.base import WrittenMatrix, first, refuse_bits, refuse_scales
from sinq.export.huggingface import HEAD, Described, FolderExporter
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal
from sinq.formats.grid import Levels
from sinq.model.experts import CompressedExperts

BITS = (2, 3, 4, 5, 6)
COMPUTED = "model-computed.safetensors"
"""File of the buffers that a model computes."""


@dataclass(frozen=True)
class OfficialSINQ(FolderExporter):
    """Folder for `AutoSINQHFModel.from_quantized_safetensors`, whose `compute_dtype` must be `dtype`."""

    name: ClassVar[str] = "official_sinq"
    carries_columns: ClassVar[bool] = True
    read_by: ClassVar[str] = "sinq 0.2 (AutoSINQHFModel)"

    def check_model(self, source: Source) -> Refusal | None:
        if any(isinstance(module, CompressedExperts) for module in source.model.modules()):
            return Refusal("it has fused experts, which the package cannot load", "export as mlx")
        return None

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        head = Refusal("the package leaves the output head dense", "add lm_head to layers.exclude")
        return first(
            head if view.name == HEAD else None,
            refuse_bits(view, BITS),
            _refuse_levels(view),
            refuse_scales(view, dtype),
        )

    def tensors(self, view: MatrixView, dtype: torch.dtype) -> dict[str, Tensor]:
        rows = view.codes.reshape(-1, view.group_size)
        stored = {"W_q": joined_rows(rows, view.bits, PACKINGS[view.bits])} | _scales(view)
        return {
            f"{view.name}.{key}": held.to(dtype) if held.is_floating_point() else held
            for key, held in stored.items()
        }

    def description(
        self, layers: Sequence[Described], dense: Sequence[str], source: Source
    ) -> dict[str, Any]:
        stated = {
            "quant_method": "sinq",
            "method": "sinq",
            "nbits": layers[0].bits,
            "group_size": layers[0].group_size,
            "tiling_mode": "2D" if any(_is_tiled(source.view(layer.name)) for layer in layers) else "1D",
            "modules_to_not_convert": list(dense),
        }
        return {"quantization_config": stated}

    def write(self, source: Source, folder: Path, progress: Progress = silent) -> list[WrittenMatrix]:
        written = super().write(source, folder, progress)
        state = source.model.state_dict()
        buffers = dict(source.model.named_buffers())
        computed = {name: held.cpu().contiguous() for name, held in buffers.items() if name not in state}
        save_file({name: held.clone() for name, held in computed.items()}, folder / COMPUTED)
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] |= dict.fromkeys(computed, COMPUTED)
        (folder / INDEX).write_text(json.dumps(index, indent=1))
        sidecar = {name: {"meta": _meta(source.view(name), source.dtype)} for name in source.matrices}
        (folder / SIDECAR).write_text(json.dumps(sidecar))
        return written


def _refuse_levels(view: MatrixView) -> Refusal | None:
    if view.grid.levels in (Levels.uniform, Levels.nf4, Levels.nf3):
        return None
    return Refusal(f"its codes are those of {view.grid.levels.name}", "use nf4, nf3 or uniform levels")


def _is_tiled(view: MatrixView) -> bool:
    return view.col_scale is not None and len(view.col_scale) > 1


def joined_rows(rows: Tensor, bits: int, packing: Packing) -> Tensor:
    """Return rows of codes, uint8 (n, group), as words (⌈n / parts⌉, group): the first part in high bits."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % packing.parts))
    words = torch.zeros(len(padded) // packing.parts, rows.shape[1], dtype=packing.dtype)
    for part in padded.chunk(packing.parts):
        words = (words << bits) | part.to(packing.dtype)
    return words


def _scales(view: MatrixView) -> dict[str, Tensor]:
    """Return scales, zeros and column scales in the shapes of the package."""
    (rows, columns), group = view.shape, view.group_size
    if not _is_tiled(view):
        ones = torch.ones(1, columns) if view.col_scale is None else view.col_scale
        return {
            "meta.scale": view.scale.reshape(-1, 1),
            "meta.zero": view.zero.reshape(-1, 1),
            "meta.scale2": ones,
        }
    assert view.col_scale is not None

    def by_tile(numbers: Tensor) -> Tensor:
        return numbers.reshape(rows // group, group, -1).mT.reshape(-1, group, 1)

    return {
        "meta.scale": by_tile(view.scale),
        "meta.zero": by_tile(view.zero),
        "meta.scale2": view.col_scale.reshape(-1, 1, group),
    }


def _meta(view: MatrixView, dtype: torch.dtype) -> dict[str, Any]:
    """Return what is no tensor of a matrix."""
    table = "" if view.grid.levels is Levels.uniform else f"_{view.grid.levels.name}"
    packing = PACKINGS[view.bits]
    return {
        "nbits": view.bits,
        "group_size": view.group_size,
        "shape": list(view.shape),
        "axis": 1,
        "packing": packing.name,
        "method": f"sinq{table}",
        "compute_dtype": str(dtype),
        "unpack_view_dtype": str(packing.dtype),
        "view_as_float": False,
        "awq_scale": None,
    }
