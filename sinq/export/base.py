"""Exporters: frozen dataclasses whose fields are a format's options, found by name.

`check` is asked about every matrix before anything is written. It refuses with the reason and with what would
help; `write` then writes what was not refused.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sinq.common.named import Named
from sinq.common.options import check
from sinq.common.progress import Progress, silent
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal

COARSEST = 2.0**-8
"""Largest error of a scale, in units of the largest one of its matrix; bfloat16 rounds to 2^−9."""


@dataclass(frozen=True)
class WrittenMatrix:
    """A matrix in an exported file."""

    name: str
    shape: tuple[int, int]
    nbytes: int
    """Bytes of all its tensors there."""


@dataclass(frozen=True)
class Exporter(Named, ABC):
    """A format of another project."""

    carries_columns: ClassVar[bool] = False
    """True if the format has a tensor for column scales; else they are folded, or the matrix is refused."""
    keeps_codes: ClassVar[bool] = True
    """False if weights are rounded once more, to levels that the format has."""
    read_by: ClassVar[str]
    """Programs that read the format, for the model card."""

    def __post_init__(self) -> None:
        check(self, "format")

    def check_model(self, source: Source) -> Refusal | None:
        """Return why the format cannot hold a model, whatever its matrices; None if it can."""
        return None

    @abstractmethod
    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        """Return why the format cannot hold a matrix exactly, or None if it can.

        Args:
            view: the matrix, without column scales that were folded.
            dtype: of dense tensors in the exported model.
        """

    def written(self, view: MatrixView) -> Tensor:
        """Return a matrix as it is in the file, float32 (out, in), up to the number format of its scales.

        Exporters without `keeps_codes` override it.
        """
        return view.dense()

    @abstractmethod
    def write(self, source: Source, folder: Path, progress: Progress = silent) -> list[WrittenMatrix]:
        """Write a model that was checked into an empty folder, in the memory of about one layer.

        The frame adds the tokenizer's files and the model card, and moves the folder to its final name.
        """


def refuse_columns(view: MatrixView) -> Refusal | None:
    """Return the refusal of column scales that could not be folded."""
    if view.col_scale is None:
        return None
    if len(view.col_scale) > 1:
        return Refusal(
            "its column scales differ between tiles of rows, which no layer before can take",
            "quantize with grid.tiling=1, or use presinq",
        )
    return Refusal(
        "its column scales are not those of the other matrices that read the same inputs, so no layer before"
        " can take them",
        "quantize with presinq or shared_columns=true, or export as torchao, which stores column scales",
    )


def refuse_levels(view: MatrixView) -> Refusal | None:
    """Return the refusal of levels from a table, for formats of uniform codes."""
    if view.grid.levels.value is None:
        return None
    return Refusal(f"its codes are those of a table, {view.grid.levels.name}", "use uniform levels")


def refuse_bits(view: MatrixView, bits: tuple[int, ...]) -> Refusal | None:
    """Return the refusal of other numbers of bits than a format has."""
    if view.bits in bits:
        return None
    return Refusal(f"it has {view.bits} bits", f"use {_either(bits)} bits")


def refuse_groups(view: MatrixView, sizes: tuple[int, ...]) -> Refusal | None:
    """Return the refusal of other group sizes than a format has."""
    if view.group_size in sizes:
        return None
    return Refusal(f"it has groups of {view.group_size}", f"use group_size={_either(sizes)}")


def refuse_zeros(view: MatrixView) -> Refusal | None:
    """Return the refusal of zeros that are no codes: fractions, or below 0 or above 2^bits − 1."""
    if view.whole_zeros:
        return None
    return Refusal(
        f"it has zeros that are not whole numbers from 0 to {2**view.bits - 1}",
        "use sinq or rtn, whose zeros are whole, or grid.symmetric=true; mlx and torchao take any zero",
    )


def refuse_sizes(view: MatrixView, rows: int = 1, columns: int = 1) -> Refusal | None:
    """Return the refusal of a shape (out, in) whose sizes are not multiples of `rows` and `columns`."""
    out_features, in_features = view.shape
    if out_features % rows == 0 and in_features % columns == 0:
        return None
    return Refusal(
        f"it is {out_features}×{in_features}; rows must be a multiple of {rows}, columns of {columns}",
        "leave the layer dense with layers.exclude",
    )


def refuse_scales(view: MatrixView, dtype: torch.dtype) -> Refusal | None:
    """Return the refusal of scales that a number format cannot hold, measured by the matrix's largest."""
    error = (view.scale.to(dtype).float() - view.scale).abs().max() / view.scale.max()
    if error <= COARSEST:  # NaN of an infinite scale is not
        return None
    return Refusal(
        f"it has scales from {view.scale.min():.3g} to {view.scale.max():.3g}, beyond {short(dtype)}",
        "export with dtype=float32 or bfloat16 where the format takes it",
    )


def short(dtype: torch.dtype) -> str:
    """Return a dtype as files name it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def first(*refusals: Refusal | None) -> Refusal | None:
    """Return the first refusal that is one."""
    return next((refusal for refusal in refusals if refusal is not None), None)


def _either(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
