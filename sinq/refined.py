"""SINQ, refined: the same stored format as SINQ and no calibration, with other answers to its two questions.

*Which column scales?* SINQ equalises standard deviations. A column with a few large weights has a large one, and then all of its other
weights are rounded coarsely for their sake. Here a column's scale is its mean |w| (rows divided by their root mean square first,
so that no row outweighs another), which a few large weights hardly move. Two passes, in closed form, instead of sixteen.

*Which range, at few bits?* A narrower one makes the typical error smaller. But the least-squares fit to it does harm: its error points
along −W (large weights are cut and the whole group shrinks towards its mean), so it adds up over a layer's inputs and over layers, where
errors of rounding cancel. So the range is narrowed, and then, given the codes q, scale and zero are solved for such that the error has
no part along the group's weights, nor along a constant:

    Σ (ŵ − w) = 0   and   Σ (ŵ − w)·w = 0     ⟺     scale = Σ(w − w̄)² / Σ(w − w̄)(q − q̄),   zero = q̄ − w̄/scale

(the unbiased scale of EDEN, Vargaftik et al. 2022). In these sums and means a column counts t^−2: SINQ's supposition that a column of small
weights has large inputs, which on SmolLM2 holds on the whole for q, v, o and down, but not for k and gate. This
alternates with new codes; after the last codes only the zero is solved for.

The defaults were chosen on one model, SmolLM2-135M. Not covered: symmetric grids and 8-bit zeros, which have no fraction to solve for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.errors import NotApplicable
from sinq.grid import Grid
from sinq.rounding import assign, by_group, choose, level, level_table, zero_limits
from sinq.scalar import Normalized, ScalarMethod
from sinq.sinkhorn import to_tiles
from sinq.tensor import QuantizedTensor

FARTHEST = 2.0**10  # between a column scale and the typical one of its tile: float16 holds that in full precision


@dataclass(frozen=True)
class SINQRefined(ScalarMethod):
    """SINQ's format with column scales from mean magnitudes and unbiased scales of groups."""

    grid: Grid = Grid()
    norm: float = 1.0
    """p of a column's magnitude, mean(|w|^p)^(1/p)."""
    passes: int = 2
    """Alternations between rows and columns."""
    steps: int = 2
    """Alternations between codes, and scale and zero."""
    influence: float = 2.0
    """A weight of the normalized matrix counts col_scale^−influence in what is solved for; 0: all count the same."""
    range_share: float | None = None
    """Where rounding starts: this share of the range between a group's extremes; null: 1 − 2.5·2^(−1.5·bits) (0.69 at 2, 0.96 at 4)."""

    def __post_init__(self) -> None:
        if self.grid.symmetric or self.grid.auxiliary_bits == 8:
            raise NotApplicable("SINQRefined solves for fractional zero-points: it needs symmetric=false and auxiliary_bits=16 or 32")
        for option, least in (("passes", 1), ("steps", 0)):
            if getattr(self, option) < least:
                raise ValueError(f"{option}={getattr(self, option)} is not possible; it must be ≥ {least}")
        if self.norm <= 0:
            raise ValueError(f"norm={self.norm} is not possible; it must be above 0")
        if self.range_share is not None and not 0 < self.range_share <= 1:
            raise ValueError(f"range_share={self.range_share} is not possible; it must be above 0 and at most 1, or null")

    def normalize(self, weight: Tensor) -> Normalized:
        col_scale = column_magnitudes(weight, self.grid.tile((weight.shape[0], weight.shape[1])), self.norm, self.passes)
        tiles = weight.reshape(len(col_scale), -1, weight.shape[1])
        return Normalized((tiles / col_scale[:, None, :]).reshape(weight.shape), col_scale=col_scale)

    def round(self, normalized: Normalized) -> QuantizedTensor:
        matrix, grid = normalized.matrix, self.grid
        share = 1 - 2.5 * 2 ** (-1.5 * grid.bits) if self.range_share is None else self.range_share
        counts = self._counts(normalized)
        scale, zero = narrow(matrix, grid, share)
        for _ in range(self.steps):
            scale, zero = unbiased(matrix, scale, zero, grid, counts=counts)
        codes = assign(matrix, scale, zero, grid)
        return normalized.store(codes, grid, scale, centred(matrix, codes, scale, zero, grid, counts=counts))

    def _counts(self, normalized: Normalized) -> Tensor:
        """How much each weight counts, of mean 1 in a group: (out or 1, in / group_size, group_size)."""
        if normalized.col_scale is None:
            return torch.ones_like(normalized.matrix[:1, :1, None])
        counts = by_group(normalized.col_scale, self.grid.group_size) ** -self.influence
        counts = counts / counts.mean(-1, keepdim=True)
        return counts if len(counts) == 1 else counts.repeat_interleave(len(normalized.matrix) // len(counts), dim=0)


def column_magnitudes(weight: Tensor, tile: tuple[int, int], norm: float = 1.0, passes: int = 2) -> Tensor:
    """mean(|w|^norm)^(1/norm) of the columns of each tile, their rows at equal root mean square: (out, in) → (out / rows, in).

    Of geometric mean 1 in a tile, and within `FARTHEST` of it; columns of zeros have 1.
    """
    magnitude = to_tiles(weight.abs(), tile)
    column = torch.ones_like(magnitude[:, :1])
    for _ in range(passes):
        row = (magnitude / column).square().mean(2, keepdim=True).sqrt()
        column = (magnitude / torch.where(row > 0, row, 1.0)).pow_(norm).mean(1, keepdim=True).pow_(1 / norm)
        alive = column > 0
        log = torch.where(alive, column, 1.0).log2()
        log = torch.where(alive, log - log.sum(2, keepdim=True) / alive.sum(2, keepdim=True).clamp_min(1), 0.0)
        column = log.exp2().clamp(1 / FARTHEST, FARTHEST)
    return column.reshape(weight.shape[0] // tile[0], weight.shape[1])


def narrow(weight: Tensor, grid: Grid, share: float) -> tuple[Tensor, Tensor]:
    """Scale and zero of `share` of the range between the extremes of each group, about its middle."""
    table = level_table(grid, weight.device)
    low, high = by_group(weight, grid.group_size).aminmax(dim=-1)
    scale = share * (high - low) / (table[-1] - table[0])
    return _storable(scale, (table[0] + table[-1]) / 2 - (low + high) / 2 / scale, *choose(weight, grid), grid)


def unbiased(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid, *, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and zero of each group that leave no error along the group's weights, nor along a constant, given the nearest codes."""
    levels, groups = _levels(assign(weight, scale, zero, grid), grid), by_group(weight, grid.group_size)
    level_mean, mean = _mean(levels, counts), _mean(groups, counts)
    deviation = groups - mean[..., None]
    new_scale = _mean(deviation.square(), counts) / _mean(deviation * levels, counts)
    return _storable(new_scale, level_mean - mean / new_scale, scale, zero, grid)


def centred(weight: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, grid: Grid, *, counts: Tensor) -> Tensor:
    """The zero of each group that leaves no mean error, given codes and scale."""
    new_zero = _mean(_levels(codes, grid), counts) - _mean(by_group(weight, grid.group_size), counts) / scale
    return _storable(scale, new_zero, scale, zero, grid)[1]


def _mean(groups: Tensor, counts: Tensor) -> Tensor:
    return (groups * counts).mean(-1)


def _levels(codes: Tensor, grid: Grid) -> Tensor:
    return by_group(level(codes, grid), grid.group_size)


def _storable(scale: Tensor, zero: Tensor, old_scale: Tensor, old_zero: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
    """The new scale and zero where there is such a thing, else the old ones: a group of one value has no range to solve for."""
    smallest, largest = zero_limits(grid)
    assert old_zero is not None  # the grid is not symmetric
    fits = (scale > 0) & scale.isfinite() & (zero >= smallest) & (zero <= largest)
    return torch.where(fits, scale, old_scale), torch.where(fits, zero, old_zero)
