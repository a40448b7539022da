"""A budget of bytes, dealt out to layers: the multiple-choice knapsack.

Every layer has a few choices, each with a price in bytes and the damage it is predicted to do. Wanted: one choice for each layer, such
that the prices sum to no more than the budget and the damages to as little as possible.

Starting from the cheapest choices, take again and again the upgrade of one layer that removes most damage per byte, among those that
still fit. As long as everything fits this walks along the lower convex hulls of the layers' (bytes, damage) curves, which is the exact
optimum for every budget it passes through; at the end, where the best upgrade no longer fits, smaller ones fill what is left. The
loss against the true optimum is below the damage of one upgrade, and with hundreds of layers that is far below what the predictions
are worth.

The same walk is also begun from every uniform choice (the same for all layers) that fits, and the best end is taken. So the
predicted damage is never above that of a uniform choice of the same bytes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sinq import NotApplicable


@dataclass(frozen=True)
class Budget:
    """How large the compressed layers may be."""

    bits_per_weight: float = 3.5
    """Everything stored in the compressed linear layers, in bits, over the weights they stand for."""

    def __post_init__(self) -> None:
        if not self.bits_per_weight > 0:
            raise ValueError(
                f"budget.bits_per_weight={self.bits_per_weight} is not possible; it must be above 0"
            )

    def nbytes(self, weights: int) -> int:
        """Bytes for layers of so many weights together."""
        return int(self.bits_per_weight * weights / 8)


def allocate(nbytes: NDArray[np.int64], damage: NDArray[np.float64], budget: int) -> NDArray[np.int64]:
    """The choice of every layer.

    Args:
        nbytes: (layers, choices), what each choice costs.
        damage: (layers, choices), what each choice is predicted to do; any unit that may be added over layers.
        budget: bytes for all layers together.

    Returns:
        (layers,), the index of each layer's choice.

    Raises:
        ValueError: the cheapest choices together are above the budget.
    """
    layers, choices = nbytes.shape
    starts = [nbytes.argmin(1), *(np.full(layers, choice) for choice in range(choices))]
    affordable = [start for start in starts if _total(nbytes, start) <= budget]
    if not affordable:
        raise ValueError(
            f"the cheapest choices take {_total(nbytes, starts[0])} bytes, above the budget of {budget}"
        )
    return min(
        (_upgraded(nbytes, damage, budget, start) for start in affordable),
        key=lambda chosen: _total(damage, chosen),
    )


def check_range(budget: Budget, nbytes: NDArray[np.int64], weights: int) -> None:
    """Raises `NotApplicable` where no choice meets the budget, or every choice does and it means nothing; says what is possible."""
    low, high = (8 * float(bound.sum()) / weights for bound in (nbytes.min(1), nbytes.max(1)))
    if not low <= budget.bits_per_weight <= high:
        possible = f"the choices of bits reach from {low:.4f} to {high:.4f}, scales and zeros included"
        raise NotApplicable(f"budget.bits_per_weight={budget.bits_per_weight} cannot be met: {possible}")


def _upgraded(
    nbytes: NDArray[np.int64], damage: NDArray[np.float64], budget: int, start: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The end of the walk from a choice for every layer."""
    chosen = start.copy()
    left = budget - _total(nbytes, chosen)
    while True:
        dearer = nbytes - _of(nbytes, chosen)[:, None]
        better = _of(damage, chosen)[:, None] - damage
        allowed = (better > 0) & (dearer <= left)
        if not allowed.any():
            return chosen
        worth = np.where(
            allowed, better / np.maximum(dearer, 0.5), -np.inf
        )  # what is better and no dearer comes first
        layer, choice = np.unravel_index(worth.argmax(), worth.shape)
        left -= dearer[layer, choice]
        chosen[layer] = choice


def _of(table: NDArray, chosen: NDArray[np.int64]) -> NDArray:
    return np.take_along_axis(table, chosen[:, None], 1)[:, 0]


def _total(table: NDArray, chosen: NDArray[np.int64]) -> float:
    return _of(table, chosen).sum().item()
