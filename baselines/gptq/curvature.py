"""Curvature of a layer's output error: the factor of the damped inverse Hessian, in the order of rounding.

GPTQ (arXiv 2210.17323) rounds with this factor, and MG-PTQ (arXiv 2501.18154) reads from it which columns
depend on each other. Layers that share their inputs share the curvature.

Nothing here depends on the unit of the inputs. The damping is a share of the mean of diag H over the channels
that are alive, and a channel that was never active has this mean on its diagonal. H is held in a unit of its
size, a power of 4, so that inputs multiplied by a power of 2 give the same numbers to the last digit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

SMALLEST_DAMPING = 1e-6
"""First damping tried when a damping of 0 is raised."""
TRIANGLE = 64
"""Triangles up to this size are inverted without halving."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """The second-order structure of a layer's output error."""

    hessian: Tensor
    """H without damping, float64 (in, in), with a diagonal of mean about 1."""
    order: Tensor
    """Columns in the order they are rounded, int64 (in,)."""
    factor: Tensor
    """The upper Cholesky factor U of the damped inverse, in that order, float64 (in, in)."""
    damping: float
    """λ as requested, or a raised λ."""

    @classmethod
    def of(cls, hessian: Tensor, damping: float, order: Callable[[Tensor], Tensor]) -> Self:
        """Return the curvature of H, float64 (in, in).

        Args:
            damping: λ, in units of the mean of diag H over channels that are alive.
            order: function from the diagonal of H, (in,), to the order of columns, int64 (in,).

        Raises:
            ValueError: H is not finite.
        """
        _require_finite(hessian)
        hessian = hessian / _unit(hessian.diagonal())
        dead = hessian.diagonal() == 0
        columns = order(hessian.diagonal())
        alive = hessian + torch.diag(dead * _mean(hessian.diagonal()))
        factor, used_damping = inverse_factor(alive[columns][:, columns], damping)
        return cls(hessian, columns, factor, used_damping)

    @property
    def dead(self) -> Tensor:
        """Mask of the channels that were never active, bool (in,)."""
        return self.hessian.diagonal() == 0


def _mean(diagonal: Tensor) -> float:
    """Return the mean over channels that are alive, 1 if there is none."""
    alive = diagonal[diagonal > 0]
    return alive.mean().item() if len(alive) else 1.0


def _unit(diagonal: Tensor) -> float:
    """Return the power of 4 nearest to the mean over channels that are alive."""
    return 4.0 ** round(math.log(_mean(diagonal), 4))


def _require_finite(hessian: Tensor) -> None:
    if not torch.isfinite(hessian).all():
        raise ValueError(
            "the Hessian of a layer's inputs has NaN or Inf: the model's activations overflow; "
            "try model.dtype=float32"
        )


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Return the upper Cholesky factor U of the damped inverse, UᵀU = (H + λ·mean(diag H)·1)⁻¹, and λ.

    λ is `damping`, or is raised tenfold until the factorization succeeds. The inverse itself is never formed:
    with rows and columns in reverse order, H = L Lᵀ reads H = V Vᵀ with an upper triangular V, and U = V⁻¹.

    Args:
        hessian: float64 (in, in), with a positive diagonal.
        damping: λ to start from.

    Raises:
        ValueError: H is not finite.
    """
    _require_finite(hessian)
    reversed_, unit = hessian.flip(0, 1), hessian.diagonal().mean()
    while True:
        damped = reversed_ + damping * unit * torch.eye(len(hessian)).to(hessian)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return _upper_inverse(lower.flip(0, 1)), damping
        damping = max(10 * damping, SMALLEST_DAMPING)


def _upper_inverse(upper: Tensor) -> Tensor:
    """Return the inverse of an upper triangular matrix, by halves: all the work is in products."""
    half, result = len(upper) // 2, torch.zeros_like(upper)
    if len(upper) <= TRIANGLE:
        return torch.linalg.solve_triangular(upper, torch.eye(len(upper)).to(upper), upper=True)
    result[:half, :half] = _upper_inverse(upper[:half, :half])
    result[half:, half:] = _upper_inverse(upper[half:, half:])
    result[:half, half:] = -(result[:half, :half] @ upper[:half, half:]) @ result[half:, half:]
    return result
