"""What error feedback needs of a layer's inputs: the factor of the damped inverse Hessian, in the order in which columns are rounded.

GPTQ (arXiv 2210.17323) rounds with it, and MG-PTQ (arXiv 2501.18154) reads from it which columns depend on each other. Layers that share
their inputs share one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

SMALLEST_DAMPING = 1e-6
"""Where raising starts from 0."""
TRIANGLE = 64
"""Triangles up to this size are inverted as they are."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """The second-order structure of a layer's output error."""

    hessian: Tensor
    """H as it was seen, float64 (in, in)."""
    order: Tensor
    """Columns in the order they are rounded, int64 (in,)."""
    factor: Tensor
    """The upper Cholesky factor U of the damped inverse, in that order, float64 (in, in)."""
    damping: float
    """The one that was asked for, or a raised one."""

    @classmethod
    def of(cls, hessian: Tensor, damping: float, order: Callable[[Tensor], Tensor]) -> Self:
        """Args:
        order: from the diagonal of H, (in,), to the order of columns.
        """
        alive = hessian + torch.diag((hessian.diagonal() == 0).double())
        columns = order(alive.diagonal())
        factor, taken = inverse_factor(alive[columns][:, columns], damping)
        return cls(hessian, columns, factor, taken)

    @property
    def dead(self) -> Tensor:
        """Which channels were never active, (in,)."""
        return self.hessian.diagonal() == 0


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor U of the damped inverse, UᵀU = (H + λ·mean(diag H)·1)⁻¹, and the λ it took: `damping`, or a raised one.

    The inverse itself is never formed: with rows and columns in reverse order, H = L Lᵀ reads H = V Vᵀ of an upper V, and U = V⁻¹.

    Args:
        hessian: float64 (in, in), with a positive diagonal.

    Raises:
        ValueError: H is not finite.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError(
            "the Hessian of a layer's inputs has NaN or Inf: the model's activations overflow; try model.dtype=float32"
        )
    reversed_, unit = hessian.flip(0, 1), hessian.diagonal().mean()
    while True:
        lower, failed = torch.linalg.cholesky_ex(
            reversed_ + damping * unit * torch.eye(len(hessian)).to(hessian)
        )
        if not failed:
            return _upper_inverse(lower.flip(0, 1)), damping
        damping = max(10 * damping, SMALLEST_DAMPING)


def _upper_inverse(upper: Tensor) -> Tensor:
    """The inverse of an upper triangular matrix, by halves: all the work is in products."""
    half, result = len(upper) // 2, torch.zeros_like(upper)
    if len(upper) <= TRIANGLE:
        return torch.linalg.solve_triangular(upper, torch.eye(len(upper)).to(upper), upper=True)
    result[:half, :half], result[half:, half:] = (
        _upper_inverse(upper[:half, :half]),
        _upper_inverse(upper[half:, half:]),
    )
    result[:half, half:] = -(result[:half, :half] @ upper[:half, half:]) @ result[half:, half:]
    return result
