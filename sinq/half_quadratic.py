"""Half-quadratic refinement of zero-points (HQQ, Badri & Shaji 2023), on the matrix as it will be rounded.

Rounding leaves an error e = W − Ŵ. HQQ prefers a sparse one: it minimises Σ|e|^p with p < 1, so that few weights are far off and most are
exact, by alternating two steps that are each in closed form:

    e    ← shrink(W − Ŵ):  |x| − |x|^(p−1)/β, not below 0, with the sign of x
    zero ← mean over the group of  codes − (W − e)/scale

Scales stay as they are. The defaults are those of SINQ's code for its `sinq_hqq` method: β stays fixed (HQQ's own package lets it
grow), the zero of the step with the smallest mean |error| of the tile is kept, and the codes are those of the last step. `reround`
chooses the codes anew for the zero that was kept.
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
    reround: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"refinement.steps={self.steps} is not possible; it must be ≥ 1")
        if not 0 < self.norm <= 1:
            raise ValueError(f"refinement.norm={self.norm} is not possible; it must be above 0 and at most 1")
        if self.beta <= 0:
            raise ValueError(f"refinement.beta={self.beta} is not possible; it must be above 0")


def refine(weight: Tensor, scale: Tensor, grid: Grid, options: HalfQuadratic) -> tuple[Tensor, Tensor]:
    """Codes uint8 (out, in) and zeros (out, in/group_size), float, for a float32 matrix (out, in) with given scales."""
    groups = by_group(weight, grid.group_size)
    height = grid.tile((weight.shape[0], weight.shape[1]))[0]
    wide = scale[..., None]
    zero = -groups.amin(-1) / scale
    best_zero, best_error = zero, torch.full_like(zero, torch.inf, dtype=torch.float64)
    for _ in range(options.steps):
        codes = assign(weight, scale, zero, grid)
        levels = by_group(codes.float(), grid.group_size)
        error = groups - (levels - zero[..., None]) * wide
        zero = (levels - (groups - _shrink(error, options)) / wide).mean(-1)
        tile_error = error.abs().reshape(-1, height, *groups.shape[1:]).mean((1, 3), dtype=torch.float64).repeat_interleave(height, dim=0)
        better = tile_error < best_error
        best_zero, best_error = torch.where(better, zero, best_zero), torch.where(better, tile_error, best_error)
    return assign(weight, scale, best_zero, grid) if options.reround else codes, best_zero


def _shrink(error: Tensor, options: HalfQuadratic) -> Tensor:
    magnitude = error.abs().clamp(1e-5, 1e5)
    return (magnitude - magnitude.pow(options.norm - 1) / options.beta).clamp_min(0) * error.sign()
