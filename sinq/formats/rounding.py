"""Rounding to a grid: choose a scale and a zero-point per group, then the nearest code.

These are two pure functions, so that methods can work between them:

    scale, zero = choose(weight, grid)             # from the extremes (tables: and the mean) of each group
    codes = assign(weight, scale, zero, grid)      # nearest level

Ranges, per group of `grid.group_size` weights of a row:
- uniform: [min, max] → scale = (max − min)/(2^bits − 1), zero = −round(min/scale). Zero is a whole number
  but not confined to [0, 2^bits − 1], so a group far from 0 keeps its resolution (SINQ's code does the
  same).
- uniform, symmetric: scale = max|w|/2^(bits−1), all 2^bits levels from −2^(bits−1) to 2^(bits−1) − 1. A
  largest weight that is positive is cut by one step; the finer step is worth it (relative error of a
  Gaussian at 2 bits 0.41, against 0.71 without the lowest level).
- tables: scale = max|w − mean|, zero = −mean/scale; symmetric: scale = max|w|, as in bitsandbytes.

A zero must be stored without loss (exactly up to 2048 in float16, one byte with 8-bit auxiliaries). If a
narrow group far from 0 would need a larger zero, its range is widened until the zero fits, so that one
unusual group costs the others nothing.
"""

import torch
from torch import Tensor

from sinq.formats.grid import Grid, Levels

TABLE_ZERO_STEP = 1 / 64
"""Resolution of a table's zero-point in one byte: −2 … 1.98."""


def round_through(x: Tensor) -> Tensor:
    """Return x rounded to whole numbers, with the gradient of x: as if it were not rounded."""
    return x + (x.round() - x).detach()


def by_group(matrix: Tensor, group_size: int) -> Tensor:
    """Return a matrix (out, in) as groups, (out, in / group_size, group_size).

    Raises:
        ValueError: the group size does not divide the columns.
    """
    if matrix.shape[1] % group_size:
        raise ValueError(
            f"group_size={group_size} does not divide a matrix of {matrix.shape[0]}×{matrix.shape[1]}"
        )
    return matrix.reshape(matrix.shape[0], -1, group_size)


def divide(weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None) -> Tensor:
    """Return W / (row ⊗ col), (out, in).

    Args:
        weight: W, (out, in).
        row_scale: (out, in / group), or None for 1.
        col_scale: (out / tile rows, in), or None for 1.
    """
    rows, columns = weight.shape
    if col_scale is not None:
        weight = (weight.reshape(len(col_scale), -1, columns) / col_scale[:, None, :]).reshape(rows, columns)
    if row_scale is not None:
        groups = weight.reshape(rows, row_scale.shape[1], -1)
        weight = (groups / row_scale[..., None]).reshape(rows, columns)
    return weight


def multiply(matrix: Tensor, row_scale: Tensor | None, col_scale: Tensor | None) -> Tensor:
    """Return matrix · (row ⊗ col), the inverse of `divide`."""
    inverse_row = None if row_scale is None else 1 / row_scale
    inverse_col = None if col_scale is None else 1 / col_scale
    return divide(matrix, inverse_row, inverse_col)


def cut(weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, limit: Tensor) -> Tensor:
    """Return W (out, in) with each group of W / (row ⊗ col) clamped to ± its limit (out, in / group_size)."""
    groups = by_group(divide(weight, row_scale, col_scale), weight.shape[1] // limit.shape[1])
    excess = groups - groups.clamp(-limit[..., None], limit[..., None])
    return weight - multiply(excess.reshape(weight.shape), row_scale, col_scale)


def choose(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero of each group of a float32 matrix (out, in), by the module's formulas.

    Both are (out, in / group_size); zero is None if the grid is symmetric.

    Raises:
        ValueError: the group size does not divide the columns.
    """
    groups = by_group(weight, grid.group_size)
    if grid.levels is not Levels.uniform:
        return _choose_table(groups, grid)
    return _choose_symmetric(groups, grid) if grid.symmetric else _choose_range(groups, grid)


def assign(weight: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """Return the nearest code of each weight, uint8 (out, in); scale and zero are (out, in / group_size)."""
    return nearest(positions(weight, scale, centre(grid) if zero is None else zero), grid)


def positions(weight: Tensor, scale: Tensor, zero: Tensor | float) -> Tensor:
    """Return the positions w/scale + zero that are rounded to a level, (out, in).

    Args:
        weight: (out, in).
        scale, zero: (out, in / group_size); zero may be one number.
    """
    groups = by_group(weight, weight.shape[1] // scale.shape[1])
    zero = zero[..., None] if isinstance(zero, Tensor) else zero
    return (groups / scale[..., None] + zero).reshape(weight.shape)


def nearest(position: Tensor, grid: Grid) -> Tensor:
    """Return the codes, uint8, whose levels are nearest to positions w/scale + zero of any shape.

    The positions may be overwritten.
    """
    if grid.levels is Levels.uniform:
        return position.round_().clamp_(0, 2**grid.bits - 1).to(torch.uint8)
    table = level_table(grid, position.device)
    return torch.bucketize(position, (table[1:] + table[:-1]) / 2).to(torch.uint8)


def level(codes: Tensor, grid: Grid) -> Tensor:
    """Return the values that codes stand for before zero and scale, float32."""
    return codes.float() if grid.levels is Levels.uniform else level_table(grid, codes.device)[codes.int()]


def level_table(grid: Grid, device: torch.device) -> Tensor:
    """Return the value of each code, float32 (2^bits,)."""
    if grid.levels is Levels.uniform:
        return torch.arange(2**grid.bits, dtype=torch.float32, device=device)
    return torch.tensor(grid.levels.value, dtype=torch.float32, device=device)


def centre(grid: Grid) -> float:
    """Return the zero-point of a symmetric grid, which is not stored."""
    return float(2 ** (grid.bits - 1)) if grid.levels is Levels.uniform else 0.0


def zero_limits(grid: Grid) -> tuple[float, float]:
    """Return the smallest and the largest zero that is stored without loss."""
    if grid.auxiliary_bits == 8:
        middle = 2 ** (grid.bits - 1) if grid.levels is Levels.uniform else 0
        step = 1 if grid.levels is Levels.uniform else TABLE_ZERO_STEP
        return middle - 128 * step, middle + 127 * step
    largest = 2.0**11 if grid.auxiliary_bits == 16 else 2.0**24
    return -largest, largest


def choose_within(low: Tensor, high: Tensor, grid: Grid, top: int) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero of uniform codes 0 … top, for groups whose weights lie within a range.

    It can be differentiated: by `low` and `high` through the scale, while zeros are whole numbers.

    Args:
        low, high: ends of the ranges, float32 of one shape, low ≤ high.
        top: the highest code, 2^bits − 1 or less; a symmetric grid has all 2^bits codes.
    """
    if grid.symmetric:
        return _symmetric(torch.maximum(-low, high), grid), None
    scale = (high - low).clamp_min(grid.range_floor) / top
    scale = torch.where(scale > 0, scale, low.abs())  # a constant group is one step away from 0, and exact
    zero = -torch.round(low / torch.where(scale > 0, scale, 1.0))
    smallest, largest = zero_limits(grid)
    scale = torch.where(
        zero < smallest, high / (top - smallest), torch.where(zero > largest, -low / largest, scale)
    )
    return nonzero(scale), zero.clamp(smallest, largest)


def _choose_range(groups: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    low, high = groups.aminmax(dim=-1)
    return choose_within(low, high, grid, 2**grid.bits - 1)


def _choose_symmetric(groups: Tensor, grid: Grid) -> tuple[Tensor, None]:
    return _symmetric(groups.abs().amax(-1), grid), None


def _symmetric(largest: Tensor, grid: Grid) -> Tensor:
    """Return the scale of groups whose largest magnitudes are given."""
    return nonzero(largest.clamp_min(grid.range_floor / 2) / 2 ** (grid.bits - 1))


def _choose_table(groups: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    if grid.symmetric:
        return nonzero(groups.abs().amax(-1).clamp_min(grid.range_floor)), None
    mean = groups.mean(-1)
    scale = (groups - mean[..., None]).abs().amax(-1).clamp_min(grid.range_floor)
    _, largest = zero_limits(grid)
    scale = nonzero(torch.maximum(scale, mean.abs() / largest))
    zero = -mean / scale
    return scale, (zero / TABLE_ZERO_STEP).round() * TABLE_ZERO_STEP if grid.auxiliary_bits == 8 else zero


def nonzero(scale: Tensor) -> Tensor:
    """Return scales with zeros replaced by the smallest positive scale, or by 1 if there is none.

    Any scale is exact for a group of zeros; this one does not widen the range of scales to be stored.
    """
    alive = scale > 0
    smallest = torch.where(alive, scale, torch.inf).amin()
    return torch.where(alive, scale, smallest.nan_to_num(nan=1.0, posinf=1.0))
