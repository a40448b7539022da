"""Curvature of a layer's output error: the triangular root of the damped Hessian, in the order of rounding.

GPTQ (arXiv 2210.17323) rounds with the factor U of the inverse Hessian. U is the inverse of an upper
triangular root V of H = V Vᵀ, so that a block of columns needs its own part of V inverted and nothing else
(`of_block`): the whole of U is made for MG-PTQ (arXiv 2501.18154) alone, which reads from it which columns
depend on each other. Layers that share their inputs share the curvature.

Where a matrix has column scales t, what is rounded is W / t, and its inputs are x · t: H becomes t H t, and
the damping is added there. So nothing depends on a column's unit: W · s with inputs x / s gives the same
codes, as long as the method's t takes s up.

Nothing here depends on the unit of the inputs. The damping is a share of the mean of diag H over the channels
that are alive, and a channel that was never active has this mean on its diagonal. H is held in a unit of its
size, a power of 4, so that inputs multiplied by a power of 2 give the same numbers to the last digit.

Damping is needed because H is estimated from few tokens. `Toward` names what it pulls H to. With `diagonal`,
H + λ · diag H, correlations shrink by 1 / (1 + λ). λ can be estimated then (`estimated_damping`): Schäfer and
Strimmer 2005 (Ledoit and Wolf's rule for correlations), with the variance that correlations of Gaussian
inputs have. Tokens of one text depend on each other, so that the estimate is a lower bound.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

SMALLEST_DAMPING = 1e-6
"""First damping tried when a damping of 0 is raised."""
BLOCK = 256
"""Columns of H that are factored at once."""
TRIANGLE = 64
"""Triangles up to this size are inverted without halving."""
LARGEST_SHRINKAGE = 0.99
"""Largest share by which estimated damping shrinks correlations."""


class Toward(enum.Enum):
    """The matrix that damping adds to H: the mean of its diagonal (GPTQ), or its diagonal."""

    identity = "identity"
    diagonal = "diagonal"

    def of(self, diagonal: Tensor) -> Tensor:
        """Return the added diagonal (in,), for a damping of 1, from the positive diagonal of H, (in,)."""
        return diagonal if self is Toward.diagonal else diagonal.mean().expand_as(diagonal)


@dataclass(frozen=True, eq=False)
class Curvature:
    """The second-order structure of a layer's output error."""

    hessian: Tensor
    """H without damping, float64 (in, in), with a diagonal of mean about 1."""
    order: Tensor
    """Columns in the order they are rounded, int64 (in,)."""
    root: Tensor
    """The upper triangular V with V Vᵀ = damped H, in that order, float64 (in, in)."""
    damping: float
    """λ as requested, or a raised λ."""
    damping_raised: bool = False
    col_scale: Tensor | None = None
    """Column scales that H is taken with, (in,); None for 1."""
    tokens: int | None = None
    """Number of inputs that H is the mean over, which its rank cannot exceed; None if that is not known."""

    @classmethod
    def of(
        cls,
        hessian: Tensor,
        damping: float,
        order: Callable[[Tensor], Tensor],
        *,
        toward: Toward = Toward.identity,
        col_scale: Tensor | None = None,
        tokens: int | None = None,
    ) -> Self:
        """Return the curvature of H, float64 (in, in).

        Args:
            damping: λ, in units of what it adds.
            order: function from the diagonal of H, (in,), to the order of columns, int64 (in,).
            toward: what the damping adds; means are those over channels that are alive.
            col_scale: column scales t of the matrix, (in,); None for 1.
            tokens: number of inputs that H is the mean over.

        Raises:
            ValueError: H is not finite.
        """
        _require_finite(hessian)
        if col_scale is not None:
            hessian = hessian * col_scale * col_scale[:, None]
        hessian = hessian / _unit(hessian.diagonal())
        diagonal = hessian.diagonal()
        columns, alive = order(diagonal), diagonal + (diagonal == 0) * _mean(diagonal)
        root, used = triangular_root(hessian, alive, columns, damping, toward)
        return cls(hessian, columns, root, used, used > damping, col_scale, tokens)

    @cached_property
    def factor(self) -> Tensor:
        """The upper Cholesky factor U of the damped inverse, in the order of columns, float64 (in, in)."""
        return upper_inverse(self.root)

    def of_block(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return what a block of columns, in the order of rounding, needs.

        Returns:
            The block's part of U, (width, width), and V[:start, block] · U[block, block], (start, width);
            float64. The errors W − Ŵ of the columns before, times the second, are added to the block.
        """
        inverse = upper_inverse(self.root[block, block])
        return inverse, self.root[: block.start, block] @ inverse

    @property
    def largest_rank(self) -> int:
        """Largest rank that H may have."""
        return len(self.order) if self.tokens is None else min(self.tokens, len(self.order))

    def damped(self, toward: Toward) -> Tensor:
        """Return H with its damping, float64 (in, in), in the original order."""
        alive = self.hessian + torch.diag(self.dead * _mean(self.hessian.diagonal()))
        return alive + torch.diag(self.damping * toward.of(alive.diagonal()))

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
    if not all(extreme.isfinite() for extreme in hessian.aminmax()):  # NaN is both; one pass, no copy
        raise ValueError(
            "the Hessian of a layer's inputs has NaN or Inf: the model's activations overflow; "
            "try model.dtype=float32"
        )


def estimated_damping(hessian: Tensor, tokens: int) -> float:
    """Return the damping toward the diagonal that H, (in, in), needs after this many tokens.

    With r the correlations of the inputs, they shrink by the share Σ (1 + r²) / (tokens · Σ r²), sums over
    pairs of channels that are alive (Schäfer and Strimmer 2005, with Var r̂ = (1 + r²) / tokens).
    """
    deviation = hessian.diagonal().sqrt()
    alive = deviation > 0
    squares = (hessian[alive][:, alive] / deviation[alive] / deviation[alive, None]).square()
    between = squares.sum().item() - len(squares)
    pairs = len(squares) * (len(squares) - 1)
    if between <= 0 or tokens == 0:
        return LARGEST_SHRINKAGE / (1 - LARGEST_SHRINKAGE)
    share = min((pairs + between) / (tokens * between), LARGEST_SHRINKAGE)
    return share / (1 - share)


def triangular_root(
    hessian: Tensor,
    diagonal: Tensor,
    order: Tensor,
    damping: float,
    toward: Toward = Toward.identity,
) -> tuple[Tensor, float]:
    """Return the upper triangular V with V Vᵀ = H + λ·D in an order of columns, float64 (in, in), and λ.

    λ is `damping`, or is raised tenfold until the factorization succeeds. D is mean(diag H)·1, or diag H.

    Args:
        hessian: finite, float64 (in, in).
        diagonal: positive, (in,); it stands in place of the diagonal of H.
        order: int64 (in,).
        damping: λ to start from.
        toward: the choice of D.
    """
    diagonal = diagonal[order]
    added = toward.of(diagonal)
    while True:
        root = hessian.index_select(0, order).gather(1, order.expand_as(hessian))
        root.diagonal().copy_(diagonal + damping * added)
        if _take_root(root):
            return root, damping
        damping = max(10 * damping, SMALLEST_DAMPING)


def _take_root(matrix: Tensor) -> bool:
    """Overwrite H by its root V; return False where H is not positive definite, and leave it half done.

    Block after block of columns from the last, each less what the columns behind it give. Nearly all the work
    is products, which a processor does twice as fast as LAPACK's factorization, and no other matrix is made.
    """
    for start in reversed(range(0, len(matrix), BLOCK)):
        stop = min(start + BLOCK, len(matrix))
        column, later = matrix[:stop, start:stop], matrix[:stop, stop:]
        column.addmm_(later, later[start:].T, alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(column[start:].flip(0, 1))
        if failed:
            return False
        column[start:] = lower.flip(0, 1)
        column[:start] = column[:start] @ upper_inverse(column[start:]).T
        matrix[stop:, start:stop] = 0
    return True


def upper_inverse(upper: Tensor) -> Tensor:
    """Return the inverse of an upper triangular matrix, by halves: all the work is in products."""
    half, result = len(upper) // 2, torch.zeros_like(upper)
    if len(upper) <= TRIANGLE:
        return torch.linalg.solve_triangular(upper, torch.eye(len(upper)).to(upper), upper=True)
    result[:half, :half] = upper_inverse(upper[:half, :half])
    result[half:, half:] = upper_inverse(upper[half:, half:])
    result[:half, half:] = -(result[:half, :half] @ upper[:half, half:]) @ result[half:, half:]
    return result
