"""A matrix while it is rounded column by column, and the loop over the columns of a block.

The loop is the definition; `cpu.py` and `triton.py` have its fast versions.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sinq import Grid, Normalized, NormalizingMethod, choose
from sinq.formats.mixed_columns import ColumnLevels
from sinq.formats.packing import pack, unpack
from sinq.formats.rounding import centre, level, nearest, positions
from sinq.kernels import fast


@dataclass(frozen=True, eq=False)
class Rounded:
    """Codes (out, in), scale and zero (out, in / group_size) of a matrix V = W / col_scale."""

    grid: Grid
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    levels: ColumnLevels | None = None
    """Levels of each column; None where all columns have the grid's."""

    @classmethod
    def by(cls, method: NormalizingMethod, normalized: Normalized, levels: ColumnLevels | None) -> Self:
        """Return the matrix as a method rounds it; where columns have levels, to the nearest of these."""
        packed, scale, zero = method.choose(normalized)
        scale = scale if normalized.row_scale is None else scale * normalized.row_scale
        if levels is None or zero is None:
            codes = unpack(packed, method.grid.bits, normalized.shape)
            return cls(method.grid, codes, scale, zero)
        codes = levels.nearest(positions(normalized.weight, scale, zero))
        return cls(method.grid, codes, scale, zero, levels)

    def set_group(self, group: int, scale: Tensor, zero: Tensor | None) -> None:
        """Set the scale and zero of a group of columns, (out, 1) each."""
        self.scale[:, group] = scale[:, 0]
        if self.zero is not None and zero is not None:
            self.zero[:, group] = zero[:, 0]

    def round_column(self, column: int, weight: Tensor) -> Tensor:
        """Set the codes of a column, (out,), and return the weights they stand for."""
        group = column // self.grid.group_size
        scale = self.scale[:, group]
        zero = centre(self.grid) if self.zero is None else self.zero[:, group]
        position = weight / scale + zero
        if self.levels is None:
            self.codes[:, column] = nearest(position, self.grid)
            return (level(self.codes[:, column], self.grid) - zero) * scale
        self.codes[:, column] = self.levels.nearest(position, column)
        return (self.levels.position(self.codes[:, column], column) - zero) * scale

    def values(self) -> Tensor:
        """Return the levels that the codes stand for, float32 (out, in)."""
        return level(self.codes, self.grid) if self.levels is None else self.levels.position(self.codes)

    def rows(self, which: slice) -> Self:
        """Return some rows, which share memory with this matrix."""
        zero = None if self.zero is None else self.zero[which]
        return replace(self, codes=self.codes[which], scale=self.scale[which], zero=zero)

    def with_rows(self, rows: Tensor, other: Self) -> Self:
        """Take the rows of `other` where the mask `rows`, (out,), is set."""
        mask = rows[:, None]
        codes = torch.where(mask, other.codes, self.codes)
        scale = torch.where(mask, other.scale, self.scale)
        zero = None
        if self.zero is not None and other.zero is not None:
            zero = torch.where(mask, other.zero, self.zero)
        return replace(self, codes=codes, scale=scale, zero=zero)

    def packed(self) -> Tensor:
        """Return the codes, packed."""
        return pack(self.codes, self.grid.bits)


def _is_affine(work: Tensor, factor: Tensor, columns: Tensor, grid: Grid, *_: object) -> bool:
    return grid.is_affine


@fast(
    cpu="baselines.gptq.cpu:round_block",
    triton="baselines.gptq.triton:round_block",
    covers=_is_affine,
)
def round_block(
    work: Tensor,
    factor: Tensor,
    columns: Tensor,
    grid: Grid,
    levels: ColumnLevels | None,
    choosing: bool,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
) -> Tensor:
    """Round a block of columns with feedback within it.

    Args:
        work: the block's weights with all feedback so far, float32 (out, width); may be overwritten.
        factor: the block's part of the inverse Hessian's upper factor, float32 (width, width).
        columns: indices of the block's columns in the matrix, int64 (width,).
        grid: levels of a code, group size.
        levels: levels of all columns of the matrix; None where all columns have the grid's.
        choosing: choose scale and zero of each group when it begins, from its extremes; the block is then
            whole groups.
        codes: uint8 (out, in); the block's columns are set.
        scale: float32 (out, in / group_size); the block's groups are set if `choosing`.
        zero: like `scale`; None if the grid is symmetric.

    Returns:
        Each column's error divided by the factor's diagonal, float32 (out, width).
    """
    rounded, errors = Rounded(grid, codes, scale, zero, levels), torch.empty_like(work)
    for j, column in enumerate(columns.tolist()):
        if choosing and j % grid.group_size == 0:
            rounded.set_group(column // grid.group_size, *choose(work[:, j : j + grid.group_size], grid))
        errors[:, j] = (work[:, j] - rounded.round_column(column, work[:, j])) / factor[j, j]
        work[:, j:] -= errors[:, j, None] * factor[j, j:]
    return errors
