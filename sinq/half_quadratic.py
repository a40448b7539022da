"""Half-quadratic refinement of zero-points (HQQ, Badri & Shaji 2023), on the matrix as it will be rounded.

Rounding leaves an error e = W − Ŵ. HQQ prefers a sparse one: it minimises Σ|e|^p with p < 1, so that few weights are far off and most are
exact, by alternating two steps that are each in closed form:

    e    ← shrink(W − Ŵ):  |x| − |x|^(p−1)/β, not below 0, with the sign of x
    zero ← mean over the group of  codes − (W − e)/scale

Scales stay as they are. Which step's zeros are kept, and with which codes, differs between the two published programs:

- SINQ's code for its `sinq_hqq` method (the defaults here): β stays fixed, the zeros of the step with the smallest mean |error| of the
  tile are kept, and the codes are those of the last step. `reround` chooses the codes anew for the zeros that were kept.
- HQQ's own package (`growth=1.01, early_stop=True, reround=True`): β grows, and all ends at the first step after which the mean |error|
  of the whole matrix is no smaller; the zeros of that last step are kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.grid import Grid
from sinq.rounding import assign, by_group


@dataclass(frozen=True)
class HalfQuadratic:
    """Options of the refinement."""

    steps: int = 20
    norm: float = 0.7
    """p of the error's norm."""
    beta: float = 10.0
    growth: float = 1.0
    """β is multiplied by this after each step."""
    early_stop: bool = False
    """Stop once the mean |error| of the whole matrix no longer falls, and keep the last zeros rather than each tile's best."""
    reround: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"refinement.steps={self.steps} is not possible; it must be ≥ 1")
        if not 0 < self.norm <= 1:
            raise ValueError(f"refinement.norm={self.norm} is not possible; it must be above 0 and at most 1")
        if self.beta <= 0:
            raise ValueError(f"refinement.beta={self.beta} is not possible; it must be above 0")
        if self.growth < 1:
            raise ValueError(f"refinement.growth={self.growth} is not possible; it must be ≥ 1")


def refine(weight: Tensor, scale: Tensor, grid: Grid, options: HalfQuadratic, zero: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and zeros for given scales.

    Args:
        weight: float32 (out, in).
        scale: (out, in / group_size).
        zero: where to start, (out, in / group_size); −min / scale by default.

    Returns:
        codes uint8 (out, in), and zeros float32 (out, in / group_size), which are no whole numbers.
    """
    groups = by_group(weight, grid.group_size)
    height = weight.shape[0] if options.early_stop else grid.tile((weight.shape[0], weight.shape[1]))[0]
    wide, beta = scale[..., None], options.beta
    zero = -groups.amin(-1) / scale if zero is None else zero
    best_zero, best_error = zero, torch.full_like(zero, torch.inf, dtype=torch.float64)
    for _ in range(options.steps):
        codes = assign(weight, scale, zero, grid)
        levels = by_group(codes.float(), grid.group_size)
        error = groups - (levels - zero[..., None]) * wide
        zero = (levels - (groups - _shrink(error, options.norm, beta)) / wide).mean(-1)
        beta *= options.growth
        size = error.abs().reshape(-1, height, *groups.shape[1:]).mean((1, 3), dtype=torch.float64)
        size = size.mean().expand_as(best_error) if options.early_stop else size.repeat_interleave(height, dim=0)
        better = size < best_error
        if options.early_stop and not better.all():
            best_zero = zero
            break
        best_zero, best_error = torch.where(better, zero, best_zero), torch.where(better, size, best_error)
    return assign(weight, scale, best_zero, grid) if options.reround else codes, best_zero


def _shrink(error: Tensor, norm: float, beta: float) -> Tensor:
    magnitude = error.abs().clamp(1e-5, 1e5)
    return (magnitude - magnitude.pow(norm - 1) / beta).clamp_min(0) * error.sign()
