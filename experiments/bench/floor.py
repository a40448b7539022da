"""The floor: how long the bytes alone would take.

A piece of work must read its inputs and write its results at least once. Those bytes over the bandwidth of a plain copy on the same
threads is the floor; a ratio to it says how much is left to gain. The copy is a contender like the others, timed in the same rounds,
so a machine that slows down lowers its own floor.

Two cautions. A copy reads and writes; where reading alone is faster (many processors), work that only reads can come out slightly below 1.
And on small shapes the data may still lie in a cache; the copy, larger than most caches, clears them before whoever follows it only.
"""

import torch
from torch import nn

from experiments.bench.timing import Implementation, Timing, clocked
from sinq.model.linear import WeightStore

NAME = "copy"
COPIED = 256 * 2**20
"""Bytes read and again written by one copy: more than the caches of most machines."""


def copy(device: torch.device, nbytes: int = COPIED) -> Implementation:
    """Copying so many bytes, which moves twice as many."""
    source, target = (torch.ones(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    return Implementation(NAME, clocked(lambda: target.copy_(source), device), 2 * nbytes)


def bandwidth(copying: Timing) -> float:
    """Bytes per second, of the median copy."""
    return copying.contender.nbytes / copying.median


def floor_seconds(nbytes: int, bytes_per_second: float) -> float:
    """Seconds that so many bytes take at least."""
    return nbytes / bytes_per_second


def product_nbytes(weight_nbytes: int, batch: int, shape: tuple[int, int], itemsize: int) -> int:
    """Bytes of x Wᵀ: the weight as it is stored, x (batch, in) and the result (batch, out) with `itemsize` bytes a number."""
    return weight_nbytes + batch * sum(shape) * itemsize


def model_nbytes(model: nn.Module) -> int:
    """Bytes of weights that one forward pass reads: all of them, but of an embedding that is no head as well only a few rows."""
    stores = [module for module in model.modules() if isinstance(module, WeightStore)]
    compressed = sum(store.value.nbytes for store in stores)
    rows: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    unread = None if head is not None and getattr(head, "weight", None) is rows.weight else rows.weight
    return compressed + sum(parameter.nbytes for parameter in model.parameters() if parameter is not unread)
