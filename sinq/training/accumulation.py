"""Gradient accumulation: a mean loss over more than fits into memory at once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

P = TypeVar("P")


def accumulate(loss: Callable[[P], Tensor], parts: Sequence[P]) -> float:
    """Add the gradients of the mean loss over parts to the leaves, one part at a time; return the mean."""
    total = 0.0
    for part in parts:
        share = loss(part) / len(parts)
        share.backward()
        total += share.item()
    return total
