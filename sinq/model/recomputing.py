"""Gradient checkpointing: blocks that keep only their inputs, and run again when their gradient is needed.

Then one block's activations are in memory at a time, for a second forward pass. Random numbers of the first
pass (dropout) are drawn again as they were.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from sinq.model.blocks import find_blocks


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Let the blocks of a model keep only their inputs within the context."""
    with ExitStack() as stack:
        for block in find_blocks(model):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            stack.callback(delattr, block, "forward")
        yield
