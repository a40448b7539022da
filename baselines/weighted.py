"""Weighted rounding: scales and zeros of groups that minimize the error as the inputs weigh it.

The output error of a layer is tr(E H Eᵀ). Its cheapest part is the diagonal: column j counts h_j = mean x_j²
(the "importance matrix" of llama.cpp's quantizers, an observer's weights in llm-compressor). Error feedback
(`baselines/gptq`) uses the rest of H, and changes codes; here codes are the nearest ones.

`inner` scales the matrix, V = W / (row ⊗ t), and chooses a first scale and zero of each group. Each of
`candidates` multiples of this scale is then tried: codes, the weighted least squares for scale and zero

    min Σ_j h_j t_j² (v_j − s (q_j − z))²

codes again, and the error. The best of all is kept, the inner method's own choice among them, so that the
weighted error is never above that of the inner method.

Not covered: symmetric grids, 8-bit zeros and tables, which have no fraction to solve for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinq import (
    Groups,
    LayerWrapper,
    Levels,
    Normalized,
    NormalizingMethod,
    NotApplicable,
    ScalarMethod,
    assign,
)
from sinq.calibration.statistics import MeanSquares, Statistic
from sinq.common.options import check, number, whole
from sinq.formats.grid import Grid
from sinq.formats.packing import pack
from sinq.formats.rounding import by_group, zero_limits


@dataclass(frozen=True)
class Weighted(LayerWrapper, NormalizingMethod):
    """A scalar quantizer whose scales and zeros minimize the error weighted by mean squared inputs.

    Raises:
        NotApplicable: `inner` is no scalar quantizer, or the grid has no fractional zero-points.
        ValueError: an option is out of its range.
    """

    name: ClassVar[str] = "weighted"

    inner: ScalarMethod
    candidates: int = 16
    """Number of scales tried per group."""
    narrowest: float = 0.7
    """Smallest multiple of the inner method's scale that is tried; the largest is 1.05."""

    def __post_init__(self) -> None:
        check(self, "method", candidates=whole(1, 1000), narrowest=number(above=0, most=1))
        if not isinstance(self.inner, ScalarMethod):
            raise NotApplicable(
                f"method.inner={type(self.inner).__name__} is not possible; Weighted solves for the scales of"
                " RTN, HQQ, SINQ or SINQRefined"
            )
        grid = self.grid
        if grid.symmetric or grid.auxiliary_bits == 8 or grid.levels is not Levels.uniform:
            raise NotApplicable(
                "Weighted solves for fractional zero-points:"
                " it needs uniform levels, symmetric=false and auxiliary_bits=16 or 32"
            )

    @property
    def statistic(self) -> type[Statistic]:
        return MeanSquares

    def prepare(self, weights: Sequence[Tensor], statistic: Any) -> list[Normalized]:
        importance = statistic.mean()
        return [replace(self.inner.normalize(weight), importance=importance) for weight in weights]

    def choose(self, normalized: Normalized) -> Groups:
        matrix, weights = normalized.matrix, _weights(normalized, self.grid)
        _, start, zero = self.inner.choose(normalized)
        assert zero is not None  # the grid is not symmetric
        best = start, zero, _error(matrix, start, zero, weights, self.grid)
        for factor in torch.linspace(self.narrowest, 1.05, self.candidates).tolist():
            middle = zero + (1 - 1 / factor) * ((2**self.grid.bits - 1) / 2 - zero)  # about the middle level
            scale, solved = _solved(matrix, factor * start, middle, weights, self.grid)
            best = _better(best, (scale, solved, _error(matrix, scale, solved, weights, self.grid)))
        codes = assign(matrix, best[0], best[1], self.grid)
        return pack(codes, self.grid.bits), best[0], best[1]


Candidate = tuple[Tensor, Tensor, Tensor]
"""Scale, zero and weighted error of each group, (out, in / group_size)."""


def _weights(normalized: Normalized, grid: Grid) -> Tensor:
    """Return h t² of each group's columns, of mean 1 in a group: (1 or out, groups, group_size)."""
    h = normalized.importance
    assert h is not None
    weights = h[None] if normalized.col_scale is None else h * normalized.col_scale.square()
    grouped = by_group(weights, grid.group_size)
    mean = grouped.mean(-1, keepdim=True)
    grouped = torch.where(mean > 0, grouped / torch.where(mean > 0, mean, 1.0), 1.0)
    rows = normalized.shape[0]
    return grouped.repeat_interleave(rows // len(grouped), dim=0) if len(grouped) > 1 else grouped


def _solved(
    matrix: Tensor, scale: Tensor, zero: Tensor, weights: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return the weighted least squares' scale and zero for the codes of a given scale and zero.

    Where they cannot be stored, they are the given ones.
    """
    q = by_group(assign(matrix, scale, zero, grid).float(), grid.group_size)
    v = by_group(matrix, grid.group_size)
    q_mean, v_mean = ((each * weights).mean(-1, keepdim=True) for each in (q, v))
    covariance = ((q - q_mean) * (v - v_mean) * weights).mean(-1)
    found = covariance / ((q - q_mean).square() * weights).mean(-1)
    new_zero = q_mean[..., 0] - v_mean[..., 0] / found
    smallest, largest = zero_limits(grid)
    fits = (found > 0) & found.isfinite() & (new_zero >= smallest) & (new_zero <= largest)
    return torch.where(fits, found, scale), torch.where(fits, new_zero, zero.clamp(smallest, largest))


def _error(matrix: Tensor, scale: Tensor, zero: Tensor, weights: Tensor, grid: Grid) -> Tensor:
    """Return the weighted squared error of each group, (out, groups)."""
    q = by_group(assign(matrix, scale, zero, grid).float(), grid.group_size)
    rounded = (q - zero[..., None]) * scale[..., None]
    return ((by_group(matrix, grid.group_size) - rounded).square() * weights).sum(-1)


def _better(one: Candidate, other: Candidate) -> Candidate:
    """Return, group by group, the candidate of smaller error."""
    smaller = other[2] < one[2]
    scale, zero, error = (torch.where(smaller, b, a) for a, b in zip(one, other, strict=True))
    return scale, zero, error
