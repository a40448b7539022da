"""A matrix as numbers, apart from how it is stored: the neutral view that every exporter works from.

    W[i, j] = (level(codes[i, j]) − zero[i, k]) · scale[i, k] · col_scale[i // tile, j],   k = j // group_size

Scales and zeros are float32 whatever their stored form; codes are decoded when they are asked for. A view may
be changed into an equal one: rows may be scaled (which changes `scale` alone), and column scales that the
layer before takes are left out (`folding.py`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinq.formats.base import CompressedWeight
from sinq.formats.grid import Grid, Levels
from sinq.formats.rounding import by_group, level
from sinq.formats.scalar import QuantizedTensor


@dataclass(frozen=True)
class Refusal:
    """The reason why a format cannot hold a matrix or a model, and what would help.

    Both are parts of one line: `layer`: `reason`; `help`.
    """

    reason: str
    help: str


@dataclass(frozen=True, eq=False)
class MatrixView:
    """A matrix (out, in) of codes, scales, zeros and column scales."""

    name: str
    """Name of its layer in a checkpoint of the dense model: "model.layers.0.mlp.up_proj"; of an expert's,
    "model.layers.0.mlp.experts.3.up_proj"."""
    value: QuantizedTensor
    """The stored value, whose codes the view has; `rows` are cut out of it."""
    scale: Tensor
    """float32 (out, in / group_size)"""
    zero: Tensor
    """float32 (out, in / group_size); of a symmetric grid, the constant."""
    col_scale: Tensor | None = None
    """float32 (out / tile rows, in), or None for 1."""
    rows: slice | None = None
    """Rows of the value that the view shows, gate or up of a fused pair; None for all."""

    @classmethod
    def of(cls, name: str, value: QuantizedTensor) -> "MatrixView":
        """Return the view of a stored value."""
        scale, zero = value.scale(), value.zero()
        whole = zero if isinstance(zero, Tensor) else torch.full_like(scale, zero)
        return cls(name, value, scale, whole, value.col_scale())

    @property
    def grid(self) -> Grid:
        return self.value.grid

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def group_size(self) -> int:
        return self.grid.group_size

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return len(self.scale), self.value.shape[1]

    @property
    def codes(self) -> Tensor:
        """The codes, uint8 (out, in), decoded now."""
        return self.value.codes()[self.rows or slice(None)]

    @property
    def whole_zeros(self) -> bool:
        """True if every zero is a code: a whole number from 0 to 2^bits − 1."""
        inside = (self.zero >= 0) & (self.zero <= 2**self.bits - 1) & (self.zero == self.zero.round())
        return self.grid.levels is Levels.uniform and bool(inside.all())

    @property
    def centred(self) -> bool:
        """True if uniform codes are centred on 2^(bits − 1), the zero of symmetric formats."""
        return self.grid.levels is Levels.uniform and bool((self.zero == 2 ** (self.bits - 1)).all())

    def part(self, name: str, rows: slice) -> "MatrixView":
        """Return some rows under another name, whole tiles of column scales."""
        col_scale = self.col_scale
        if col_scale is not None and len(col_scale) > 1:
            tile = self.shape[0] // len(col_scale)
            col_scale = col_scale[rows.start // tile : rows.stop // tile]
        return replace(
            self, name=name, scale=self.scale[rows], zero=self.zero[rows], col_scale=col_scale, rows=rows
        )

    def with_rows(self, factor: Tensor) -> "MatrixView":
        """Return the view of the matrix with row i multiplied by factor[i], (out,) and positive."""
        return replace(self, scale=self.scale * factor[:, None])

    def without_columns(self) -> "MatrixView":
        """Return the view without column scales, which the layer before has taken."""
        return replace(self, col_scale=None)

    def dense(self) -> Tensor:
        """Return the matrix that the view stands for, float32 (out, in)."""
        groups = by_group(level(self.codes, self.grid), self.group_size)
        matrix = ((groups - self.zero[..., None]) * self.scale[..., None]).reshape(self.shape)
        if self.col_scale is None:
            return matrix
        tiles = matrix.reshape(len(self.col_scale), -1, self.shape[1])
        return (tiles * self.col_scale[:, None, :]).reshape(self.shape)


def no_view(value: CompressedWeight) -> Refusal | None:
    """Return why a value has no view, or None if it has one: only scalar codes in groups do."""
    if isinstance(value, QuantizedTensor):
        return None
    return Refusal(
        f"it is stored as {value.name}, which is not one grid of scalar codes",
        "quantize with a method of a plain grid, such as sinq, rtn, gptq or awq",
    )
