"""Passes of an optimizer over windows of text: the loop that all training here shares.

for epoch in passes(optimizer, loss, windows, epochs=20, batch=1):
    ...                     # measure, keep, or `break`
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sinq.training.accumulation import accumulate


def passes(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    windows: Sequence[int],
    epochs: int,
    batch: int,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Train for some epochs, and yield the number of each, from 1, when it is over.

    Args:
        loss: the loss of one window, of which the graph is freed before the next.
        batch: number of windows per step; a step follows the gradient of their mean loss.
        generator: source of the order of windows, another in each epoch; None keeps theirs.
    """
    for epoch in range(1, epochs + 1):
        order = list(windows)
        if generator is not None:
            order = [windows[k] for k in torch.randperm(len(windows), generator=generator).tolist()]
        for start in range(0, len(order), batch):
            _step(optimizer, loss, order[start : start + batch])
        yield epoch


def _step(optimizer: torch.optim.Optimizer, loss: Callable[[int], Tensor], windows: Sequence[int]) -> None:
    optimizer.zero_grad()
    with torch.enable_grad():
        accumulate(loss, windows)
    optimizer.step()
