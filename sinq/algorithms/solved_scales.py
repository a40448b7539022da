"""Column magnitudes, scales and zeros solved for: the mathematics of `methods/sinq_refined.py`. Pure."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.algorithms.sinkhorn import to_tiles
from sinq.formats.grid import Grid
from sinq.formats.rounding import assign, by_group, choose, level, level_table, zero_limits

FARTHEST = 2.0**10
"""Largest ratio between a column scale and the typical one of its tile; float16 keeps full precision."""


@dataclass(frozen=True)
class Solved:
    """Options of `round_solved`; see `SINQRefined`."""

    steps: int
    influence: float
    range_share: float


def column_magnitudes(weight: Tensor, tile: tuple[int, int], norm: float = 1.0, passes: int = 2) -> Tensor:
    """Return mean(|w|^norm)^(1/norm) of the columns of each tile, with rows scaled to equal root mean square.

    The geometric mean of a tile's magnitudes is 1, and each is at most `FARTHEST` from it; columns of zeros
    have 1.

    Args:
        weight: (out, in).
        tile: rows and columns of a tile.
        passes: alternations between rows and columns.

    Returns:
        magnitudes (out / rows, in).
    """
    magnitude = to_tiles(weight.abs(), tile)
    column = torch.ones_like(magnitude[:, :1])
    for _ in range(passes):
        row = (magnitude / column).square().mean(2, keepdim=True).sqrt()
        column = (magnitude / torch.where(row > 0, row, 1.0)).pow_(norm).mean(1, keepdim=True).pow_(1 / norm)
        column = centred_columns(column)
    return column.reshape(weight.shape[0] // tile[0], weight.shape[1])


def centred_columns(column: Tensor) -> Tensor:
    """Return magnitudes over their geometric mean along the last dimension.

    They are clamped to [1 / `FARTHEST`, `FARTHEST`]; zeros become 1.
    """
    alive = column > 0
    log = torch.where(alive, column, 1.0).log2()
    log = torch.where(alive, log - log.sum(-1, keepdim=True) / alive.sum(-1, keepdim=True).clamp_min(1), 0.0)
    return log.exp2().clamp(1 / FARTHEST, FARTHEST)


def round_solved(
    matrix: Tensor, col_scale: Tensor | None, grid: Grid, options: Solved
) -> tuple[Tensor, Tensor, Tensor]:
    """Round a matrix: `narrow`, `options.steps` times `orthogonal`, then codes and their `centred` zeros.

    Args:
        matrix: (out, in), already divided by the column scales.
        col_scale: (out / tile rows, in), or None for 1.

    Returns:
        codes uint8 (out, in); scale and zero, float32 (out, in / group_size).
    """
    counts = column_counts(col_scale, grid, options.influence, matrix)
    counts = counts.repeat_interleave(len(matrix) // len(counts), dim=0) if len(counts) > 1 else counts
    scale, zero = narrow(matrix, grid, options.range_share)
    for _ in range(options.steps):
        scale, zero = orthogonal(matrix, scale, zero, grid, counts=counts)
    codes = assign(matrix, scale, zero, grid)
    return codes, scale, centred(matrix, codes, scale, zero, grid, counts=counts)


def column_counts(col_scale: Tensor | None, grid: Grid, influence: float, like: Tensor) -> Tensor:
    """Return the weight of each column in sums over a group: col_scale^−influence, of mean 1 in the group.

    The result is (out / tile rows, in / group_size, group_size).
    """
    col_scale = torch.ones_like(like[:1]) if col_scale is None else col_scale
    counts = by_group(col_scale, grid.group_size) ** -influence
    return counts / counts.mean(-1, keepdim=True)


def narrow(weight: Tensor, grid: Grid, share: float) -> tuple[Tensor, Tensor]:
    """Return scale and zero of `share` of the range between the extremes of each group, about its middle."""
    table = level_table(grid, weight.device)
    low, high = by_group(weight, grid.group_size).aminmax(dim=-1)
    scale = share * (high - low) / (table[-1] - table[0])
    zero = (table[0] + table[-1]) / 2 - (low + high) / 2 / scale
    return _storable(scale, zero, *choose(weight, grid), grid)


def orthogonal(
    weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid, *, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero of each group whose error is orthogonal to the weights and to a constant.

    Codes are the nearest ones for the given scale and zero; sums over a group are weighted by `counts`.
    """
    levels, groups = _levels(assign(weight, scale, zero, grid), grid), by_group(weight, grid.group_size)
    level_mean, mean = _mean(levels, counts), _mean(groups, counts)
    deviation = groups - mean[..., None]
    new_scale = _mean(deviation.square(), counts) / _mean(deviation * levels, counts)
    return _storable(new_scale, level_mean - mean / new_scale, scale, zero, grid)


def centred(
    weight: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, grid: Grid, *, counts: Tensor
) -> Tensor:
    """Return the zero of each group that leaves no mean error, for given codes and scale."""
    new_zero = _mean(_levels(codes, grid), counts) - _mean(by_group(weight, grid.group_size), counts) / scale
    return _storable(scale, new_zero, scale, zero, grid)[1]


def _mean(groups: Tensor, counts: Tensor) -> Tensor:
    return (groups * counts).mean(-1)


def _levels(codes: Tensor, grid: Grid) -> Tensor:
    return by_group(level(codes, grid), grid.group_size)


def _storable(
    scale: Tensor, zero: Tensor, old_scale: Tensor, old_zero: Tensor | None, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return the new scale and zero of each group, or the old ones if the new cannot be stored.

    A group of one value has no range to solve for.
    """
    smallest, largest = zero_limits(grid)
    assert old_zero is not None  # the grid is not symmetric
    fits = (scale > 0) & scale.isfinite() & (zero >= smallest) & (zero <= largest)
    return torch.where(fits, scale, old_scale), torch.where(fits, zero, old_zero)
