"""The floor: the time that moving the bytes alone would take.

Work must read its inputs and write its results at least once. The floor is those bytes over the bandwidth of
a plain copy on the same threads; the ratio to it shows the room for improvement. The copy is a contender like
the others, timed in the same rounds, so the floor follows the speed of the machine.

Two cautions. A copy reads and writes; where reading alone is faster (many CPUs), work that only reads can
have a ratio slightly below 1. And on small shapes the data may still be in a cache; the copy, larger than
most caches, clears them only for the contender that follows it.
"""

import torch
from torch import nn

from experiments.bench.timing import Implementation, Timing, clocked
from sinq.model.linear import WeightStore

NAME = "copy"
COPIED = 256 * 2**20
"""Bytes that one copy reads, and writes again: more than the caches of most machines."""


def copy(device: torch.device, nbytes: int = COPIED) -> Implementation:
    """Return the contender that copies `nbytes` bytes, which moves twice as many."""
    source, target = (torch.ones(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    return Implementation(NAME, clocked(lambda: target.copy_(source), device), 2 * nbytes)


def bandwidth(copying: Timing) -> float:
    """Return bytes per second of the median copy."""
    return copying.contender.nbytes / copying.median


def floor_seconds(nbytes: int, bytes_per_second: float) -> float:
    """Return the seconds that moving `nbytes` takes at least."""
    return nbytes / bytes_per_second


def product_nbytes(weight_nbytes: int, batch: int, shape: tuple[int, int], itemsize: int) -> int:
    """Return the bytes that x Wᵀ moves: the stored weight, x (batch, in) and the result (batch, out).

    Args:
        shape: (out, in) of the weight.
        itemsize: bytes of a number of x and of the result.
    """
    return weight_nbytes + batch * sum(shape) * itemsize


def model_nbytes(model: nn.Module) -> int:
    """Return the bytes of weights that a forward pass reads.

    An embedding counts only where it is the head too: otherwise a pass reads only a few rows of it.
    """
    stores = [module for module in model.modules() if isinstance(module, WeightStore)]
    compressed = sum(store.value.nbytes for store in stores)
    rows: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    unread = None if head is not None and getattr(head, "weight", None) is rows.weight else rows.weight
    return compressed + sum(parameter.nbytes for parameter in model.parameters() if parameter is not unread)
