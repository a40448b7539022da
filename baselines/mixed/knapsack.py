"""Allocation of a budget of bytes to layers: the multiple-choice knapsack.

Every layer has a few choices, each with a cost in bytes and a predicted sensitivity. Wanted: one choice for
each layer, such that the costs sum to no more than the budget and the sensitivities to as little as possible.

Starting from the cheapest choices, repeatedly take the upgrade of one layer that removes most sensitivity per
byte, among the upgrades that still fit. As long as everything fits this walks along the lower convex hulls of
the layers' (bytes, sensitivity) curves, which is the exact optimum for every budget it passes through; at the
end, where the best upgrade no longer fits, smaller ones fill the rest. The loss against the true optimum is
below the sensitivity of one upgrade, and with hundreds of layers that is far below the error of the
predictions.

The same walk is also started from every uniform choice (the same for all layers) that fits, and the best end
is taken. So the predicted sensitivity is never above that of a uniform choice of the same bytes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sinq import NotApplicable
from sinq.common.options import check, number


@dataclass(frozen=True)
class Budget:
    """Size limit of the compressed layers.

    Raises:
        ValueError: the limit is not above 0.
    """

    bits_per_weight: float = 3.5
    """Everything stored in the compressed linear layers, in bits, per weight they replace."""

    def __post_init__(self) -> None:
        check(self, "budget", bits_per_weight=number(above=0, most=64))

    def nbytes(self, weights: int) -> int:
        """Return the bytes allowed for layers with so many weights in total."""
        return int(self.bits_per_weight * weights / 8)


def allocate(nbytes: NDArray[np.int64], sensitivity: NDArray[np.float64], budget: int) -> NDArray[np.int64]:
    """Choose for every layer, within the budget.

    Args:
        nbytes: (layers, choices), the cost of each choice in bytes.
        sensitivity: (layers, choices), predicted for each choice; any unit that may be added over layers.
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
        (_upgraded(nbytes, sensitivity, budget, start) for start in affordable),
        key=lambda chosen: _total(sensitivity, chosen),
    )


def check_range(budget: Budget, nbytes: NDArray[np.int64], weights: int) -> None:
    """Refuse a budget that no choice meets, or that every choice meets; the message says what is possible.

    Args:
        budget: the size limit.
        nbytes: (layers, choices), the cost of each choice in bytes.
        weights: number of weights of all layers.

    Raises:
        NotApplicable: the budget is outside the range of the choices.
    """
    low, high = (8 * float(bound.sum()) / weights for bound in (nbytes.min(1), nbytes.max(1)))
    if not low <= budget.bits_per_weight <= high:
        possible = f"the choices of bits reach from {low:.4f} to {high:.4f}, scales and zeros included"
        raise NotApplicable(f"budget.bits_per_weight={budget.bits_per_weight} cannot be met: {possible}")


def _upgraded(
    nbytes: NDArray[np.int64], sensitivity: NDArray[np.float64], budget: int, start: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Walk from a choice for every layer to the end; return the choices there."""
    chosen = start.copy()
    left = budget - _total(nbytes, chosen)
    while True:
        dearer = nbytes - _of(nbytes, chosen)[:, None]
        better = _of(sensitivity, chosen)[:, None] - sensitivity
        allowed = (better > 0) & (dearer <= left)
        if not allowed.any():
            return chosen
        # With at least half a byte as divisor, better choices that cost no more bytes come first.
        worth = np.where(allowed, better / np.maximum(dearer, 0.5), -np.inf)
        layer, choice = np.unravel_index(worth.argmax(), worth.shape)
        left -= dearer[layer, choice]
        chosen[layer] = choice


def _of(table: NDArray, chosen: NDArray[np.int64]) -> NDArray:
    return np.take_along_axis(table, chosen[:, None], 1)[:, 0]


def _total(table: NDArray, chosen: NDArray[np.int64]) -> float:
    return _of(table, chosen).sum().item()
