"""GPTQ (arXiv 2210.17323): round column by column; later columns compensate for each rounding error.

The output error of a layer, over the inputs X seen in calibration, is tr(E H Eᵀ) with E = W − Ŵ and H = XᵀX.
When column j is rounded with error e, the best change of the later columns is −e · U[j, j:] / U[j, j], where
U is the upper Cholesky factor of H⁻¹. Changes inside a block of columns are made at once, changes behind the
block when it is done ("lazy"), which is exact and faster.

Scales and zeros of a group are chosen when its first column is reached, from the weights as changed until
then. `act_order` rounds columns that matter (large diagonal of H) first. Groups are always those of the
original order, so that the stored format is that of every other method: `groups` reorders groups and columns
within a group (GPTQModel's default, "group-aware"); `full` reorders all columns and chooses the scales of all
groups before anything is rounded ("static groups"). The order can decide everything: on SmolLM2 at 3 bits,
with the dense model's statistics, GPTQ without `act_order` is worse than round to nearest, though its layers'
errors are smaller.

What differs from the published algorithm and its code (IST-DASLab/gptq), or is open there:
- With `full`, scales are those of static groups (`--static-groups` of the later packages); the code chooses
  them on the way, for groups of reordered columns, which would need an index of groups to be stored.
- A group's range is that of its weights. The code widens it to contain 0.
- A channel never active in calibration (a zero on the diagonal of H) is rounded to nearest, not set to 0:
  calibration text is not all text. The damping is a share of the mean over the other channels. The code puts
  1 on the diagonal first, so that its results depend on the unit of the inputs.
- The inverse and its factor are computed in float64. Where H is singular all the same, the damping is raised
  tenfold until it is not, and the report says so (`damping_raised`). The default damping is the paper's
  0.01; GPTQModel 7.6 has 0.05.
- `keep_better_rows`, off by default, is this project's: each row keeps whichever of GPTQ and round to nearest
  has the smaller tr(E H Eᵀ). So GPTQ is never worse by this measure; the report counts the rows rounded to
  nearest (`rows_rounded`).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from baselines.gptq.curvature import Curvature
from sinq import CompressedWeight, Grid, LayerMethod, QuantizedTensor, assign, choose
from sinq.calibration.statistics import Hessian
from sinq.common.options import check, number, whole
from sinq.formats.mixed_columns import ColumnLevels, MixedColumns
from sinq.formats.rounding import centre, level, nearest, positions
from sinq.kernels import fast


class ActOrder(enum.Enum):
    """Order in which columns are rounded."""

    none = "none"
    groups = "groups"
    full = "full"


@dataclass(frozen=True)
class GPTQ(LayerMethod):
    """Rounding with error feedback through the Hessian of the layer's inputs.

    Raises:
        ValueError: an option is out of its range.
    """

    name: ClassVar[str] = "gptq"
    version: ClassVar[int] = 2
    """1 kept the better of GPTQ and round to nearest in each row, and damped by a mean with dead channels."""

    grid: Grid = Grid()
    damping: float = 0.01
    """Addition to the diagonal of H, in units of the diagonal's mean over channels that are alive."""
    block: int = 128
    """Columns between two lazy updates; results differ by float rounding only."""
    act_order: ActOrder = ActOrder.none
    true_sequential: bool = False
    """Within a block, let each layer see the compressed layers before it.

    This takes one more pass over the text for each input (about four).
    """
    keep_better_rows: bool = False
    """Round a row to nearest where that has the smaller tr(E H Eᵀ); not in the published algorithm."""

    statistic = Hessian

    def __post_init__(self) -> None:
        check(self, "method", damping=number(least=0, most=1e6), block=whole(1))

    def quantize(self, weight: Tensor, statistic: Hessian) -> CompressedWeight:
        return self.feed_back(weight, self.curvature(statistic))

    def quantize_together(self, weights: Sequence[Tensor], statistic: Hessian) -> list[CompressedWeight]:
        curvature = self.curvature(statistic)
        return [self.feed_back(weight, curvature) for weight in weights]

    def curvature(self, statistic: Hessian) -> Curvature:
        """Return the curvature shared by all layers that share their inputs.

        Raises:
            ValueError: the Hessian is not finite.
        """
        return Curvature.of(statistic.matrix(), self.damping, self._order)

    def feed_back(
        self, weight: Tensor, curvature: Curvature, levels: ColumnLevels | None = None
    ) -> CompressedWeight:
        """Round a matrix (out, in).

        Args:
            levels: levels of each column, where they differ from the grid's; the grid must then be uniform,
            with zeros.
        """
        rounded = self._feed_back(weight, curvature.factor.float(), curvature.order, levels)
        notes = {"damping_raised": curvature.damping} if curvature.damping > self.damping else {}
        if curvature.dead.any():
            notes["dead_columns"] = float(curvature.dead.sum())
        if self.keep_better_rows:
            to_nearest = _Rounded.nearest(weight, self.grid, levels)
            limits = to_nearest.row_errors(weight, curvature.hessian)
            worse = rounded.row_errors(weight, curvature.hessian) > limits
            rounded = rounded.with_rows(worse, to_nearest)
            notes |= {"rows_rounded": float(worse.sum())} if worse.any() else {}
        return rounded.store(notes)

    def _order(self, importance: Tensor) -> Tensor:
        """Return the columns in the order they are rounded, int64 (in,), from the diagonal of H."""
        if self.act_order is ActOrder.full:
            return importance.argsort(descending=True, stable=True)
        columns = torch.arange(len(importance), device=importance.device).reshape(-1, self.grid.group_size)
        if self.act_order is ActOrder.groups:
            grouped = importance.reshape(columns.shape)
            columns = columns.gather(1, grouped.argsort(dim=1, descending=True, stable=True))
            columns = columns[grouped.amax(1).argsort(descending=True, stable=True)]
        return columns.reshape(-1)

    def _feed_back(
        self, weight: Tensor, factor: Tensor, order: Tensor, levels: ColumnLevels | None
    ) -> "_Rounded":
        """Round all columns in `order`, (in,), with the upper factor (in, in) of the inverse Hessian."""
        # Blocks are whole groups, so that no scale is chosen from half-updated weights.
        block = -(-self.block // self.grid.group_size) * self.grid.group_size
        work = weight[:, order]
        result = _Rounded.nearest(weight, self.grid, levels)
        choosing = self.act_order is not ActOrder.full
        for start in range(0, len(order), block):
            stop = min(start + block, len(order))
            errors = round_block(
                work[:, start:stop],
                factor[start:stop, start:stop],
                order[start:stop],
                self.grid,
                levels,
                choosing,
                result.codes,
                result.scale,
                result.zero,
            )
            work[:, stop:] -= errors @ factor[start:stop, stop:]
        return result


@dataclass(frozen=True, eq=False)
class _Rounded:
    """Matrix while it is rounded: codes (out, in), scale and zero (out, in / group_size)."""

    grid: Grid
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    levels: ColumnLevels | None = None
    """Levels of each column; None where all columns have the grid's."""

    @classmethod
    def nearest(cls, weight: Tensor, grid: Grid, levels: ColumnLevels | None) -> Self:
        scale, zero = choose(weight, grid)
        if levels is None or zero is None:
            return cls(grid, assign(weight, scale, zero, grid), scale, zero)
        return cls(grid, levels.nearest(positions(weight, scale, zero)), scale, zero, levels)

    def choose_group(self, group: int, weight: Tensor) -> None:
        """Choose the scale and zero of one group of columns, (out, group_size)."""
        scale, zero = choose(weight, self.grid)
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

    def row_errors(self, weight: Tensor, hessian: Tensor) -> Tensor:
        """Return the diagonal of E H Eᵀ, float64 (out,), with scales as they are stored."""
        error = (weight - self.store({}).dequantize()).double()
        return ((error @ hessian) * error).sum(1)

    def with_rows(self, rows: Tensor, other: Self) -> Self:
        """Take the rows of `other` where the mask `rows`, (out,), is set."""
        mask = rows[:, None]
        codes = torch.where(mask, other.codes, self.codes)
        scale = torch.where(mask, other.scale, self.scale)
        zero = None
        if self.zero is not None and other.zero is not None:
            zero = torch.where(mask, other.zero, self.zero)
        return replace(self, codes=codes, scale=scale, zero=zero)

    def store(self, notes: dict[str, float]) -> CompressedWeight:
        if self.levels is None or self.zero is None:
            return QuantizedTensor.store(self.codes, self.grid, self.scale, self.zero, notes=notes)
        return MixedColumns.store(self.codes, self.levels, self.grid, self.scale, self.zero, notes)


def _is_affine(work: Tensor, factor: Tensor, columns: Tensor, grid: Grid, *_: object) -> bool:
    return grid.is_affine


@fast(cpu="baselines.gptq.cpu:round_block", covers=_is_affine)
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
        choosing: choose scale and zero of each group when it begins; the block is then whole groups.
        codes: uint8 (out, in); the block's columns are set.
        scale: float32 (out, in / group_size); the block's groups are set if `choosing`.
        zero: like `scale`; None if the grid is symmetric.

    Returns:
        Each column's error divided by the factor's diagonal, float32 (out, width).
    """
    rounded, errors = _Rounded(grid, codes, scale, zero, levels), torch.empty_like(work)
    for j, column in enumerate(columns.tolist()):
        if choosing and j % grid.group_size == 0:
            rounded.choose_group(column // grid.group_size, work[:, j : j + grid.group_size])
        errors[:, j] = (work[:, j] - rounded.round_column(column, work[:, j])) / factor[j, j]
        work[:, j:] -= errors[:, j, None] * factor[j, j:]
    return errors
