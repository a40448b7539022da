"""Half-quadratic refinement of zero-points (HQQ, Badri & Shaji 2023), on the matrix that will be rounded.

Rounding leaves an error e = W − Ŵ. HQQ prefers a sparse error: it minimises Σ|e|^p with p < 1, so that few
weights are far off and most are exact. It alternates two steps, each in closed form:

    e    ← shrink(W − Ŵ):  |x| − |x|^(p−1)/β, not below 0, with the sign of x
    zero ← mean over the group of  codes − (W − e)/scale

Scales do not change. The two published programs differ in the zeros that are kept and in their codes:

- SINQ's code for its `sinq_hqq` method (the defaults here) keeps the zeros of the step with the smallest mean
  |error| of the tile, and the codes of the last step. `reround` chooses the codes anew for the kept zeros.
- HQQ's own package (`early_stop=True, reround=True`) stops at the first step after which the mean |error|
  of the whole matrix is no smaller, and keeps the zeros of that last step. Its options name a growth of β,
  1.01 per step, but hqq 0.2.8 leaves β constant.

Weights are multiplied by 1/scale before the zero is added, as in the package: weights that come from a
4-bit grid often lie exactly between two codes, and there the order of operations decides. In this order the
outputs match the package's on every weight.

For |e| ≤ β^(−1/(2−p)), `shrink` gives 0. On weights much smaller than 0.1 the refinement is thus a search
for the zeros with a mean error of 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.common.options import check, number, whole
from sinq.formats.grid import Grid
from sinq.formats.rounding import by_group, choose, nearest


@dataclass(frozen=True)
class HalfQuadratic:
    """Options of the refinement.

    Raises:
        ValueError: an option is out of range.
    """

    steps: int = 20
    """Largest number of alternations."""
    norm: float = 0.7
    """p of the error's norm."""
    beta: float = 10.0
    """β of the first step."""
    growth: float = 1.0
    """Factor of β after each step."""
    early_stop: bool = False
    """Stop once the mean |error| of the whole matrix no longer falls, and keep the last zeros instead of
    the best of each tile."""
    reround: bool = False
    """Choose the codes for the kept zeros instead of keeping those of the last step."""

    def __post_init__(self) -> None:
        check(
            self,
            "refinement",
            steps=whole(1),
            norm=number(above=0, most=1),
            beta=number(above=0),
            growth=number(least=1),
        )


def inverse_scale(weight: Tensor, grid: Grid) -> Tensor:
    """Return 1/scale of each group of a matrix (out, in), float32 (out, in / group_size).

    The scale is the one that `choose` gives. If it is the group's range over the largest code, not widened,
    then its inverse is computed from the range, to be rounded once.
    """
    low, high = by_group(weight, grid.group_size).aminmax(dim=-1)
    scale, _ = choose(weight, grid)
    top = 2**grid.bits - 1
    return torch.where(scale == (high - low) / top, (high - low).reciprocal() * top, 1 / scale)


def refine(
    weight: Tensor, inverse: Tensor, zero: Tensor, grid: Grid, options: HalfQuadratic
) -> tuple[Tensor, Tensor]:
    """Return codes and refined zeros for given scales.

    Args:
        weight: float32 (out, in).
        inverse: 1/scale, (out, in / group_size).
        zero: initial zeros, (out, in / group_size).

    Returns:
        codes uint8 (out, in), and zeros float32 (out, in / group_size), which are not whole numbers.
    """
    groups, wide = by_group(weight, grid.group_size), inverse[..., None]
    positions = groups * wide

    def step(zero: Tensor, beta: float, moving: Tensor) -> tuple[Tensor, Tensor]:
        codes = nearest(positions + zero[..., None], grid)
        error = groups - (codes - zero[..., None]) / wide
        return (codes - positions + shrink(error, options.norm, beta) * wide).mean(-1), error.abs().sum(-1)

    zero_of_codes, zero = alternate(step, zero, grid.tile((weight.shape[0], weight.shape[1]))[0], options)
    return nearest(positions + zero_of_codes[..., None], grid).reshape(weight.shape), zero


Step = Callable[[Tensor, float, Tensor], tuple[Tensor, Tensor]]
"""Function of zeros, β, and a mask of the groups that still move. It returns the next zeros, and Σ|error|
of each group with the present zeros. All but β are (out, in / group_size). Results for other groups are
ignored."""


def alternate(step: Step, zero: Tensor, height: int, options: HalfQuadratic) -> tuple[Tensor, Tensor]:
    """Alternate the two steps; return the zeros that codes are rounded with, and the zeros to keep.

    With a fixed β, a group whose zero did not change is finished.

    Args:
        step: computes the next zeros.
        zero: initial zeros, (out, in / group_size).
        height: rows of a tile.
    """
    height = len(zero) if options.early_stop else height
    used, kept, beta = zero, zero, options.beta
    moving, size = torch.ones_like(zero, dtype=torch.bool), torch.zeros_like(zero)
    smallest = torch.full_like(zero[::height], torch.inf, dtype=torch.float64)
    for _ in range(options.steps):
        used = zero
        moved, found = step(zero, beta, moving)
        zero, size = torch.where(moving, moved, zero), torch.where(moving, found, size)
        beta *= options.growth
        total = size.reshape(-1, height, zero.shape[1]).sum(1, dtype=torch.float64)
        total = total.sum().expand_as(smallest) if options.early_stop else total
        better = total < smallest
        smallest = torch.minimum(total, smallest)
        if options.early_stop:
            kept = zero
        else:
            kept = torch.where(better.repeat_interleave(height, dim=0), zero, kept)
        if options.growth == 1:
            moving = zero != used
        if not moving.any() or (options.early_stop and not better.all()):
            break
    return kept if options.reround else used, kept


def shrink(error: Tensor, norm: float, beta: float) -> Tensor:
    """Return |x| − |x|^(norm−1)/beta, not below 0, with the sign of x; any shape."""
    magnitude = error.abs().clamp(1e-5, 1e5)
    return (magnitude - magnitude.pow(norm - 1) / beta).clamp_min(0) * error.sign()
