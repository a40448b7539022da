"""Walk through a model's decoder blocks, one at a time on the device, each with the hidden states it is given.

    for block in walk(model, tokens, context):
        ...                     # look at `block.inputs`, run it, change `block.module`

On leaving a block its inputs are run through what the block has become, and the outputs are the next block's inputs:
this is the only thing that happens implicitly. A visitor that wants the next block to see what this one is *now*,
whatever is done to it afterwards, says so by `block.advance()`. One that changes nothing walks the model as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sinq.common.timing import Clock, timed
from sinq.model.blocks import BlockFunction, HiddenStates, block_at, enter, find_blocks
from sinq.model.context import Context
from sinq.model.targets import Target


class OnTarget(Protocol):
    """Work that is planned for one target; a `Step` of a plan is it."""

    @property
    def target(self) -> Target: ...


T = TypeVar("T", bound=OnTarget)


@dataclass(eq=False)
class BlockView:
    """One decoder block, on the device for as long as the walk stays at it."""

    model: nn.Module
    """The whole model; its other blocks are where it lives."""
    index: int
    module: nn.Module
    """The block itself, to be changed in place."""
    device: torch.device
    steps: list[Any]
    """Those of the walk's steps whose layers are in this block, in the order of the plan."""
    inputs: HiddenStates
    """One tensor (1, seqlen, hidden) for each window."""
    run: BlockFunction
    """The block as a function of hidden states."""
    clock: Clock
    """Time the walk spends running the model."""
    _following: HiddenStates | None = field(default=None, init=False)

    def outputs(self) -> HiddenStates:
        """BlockFunction the block as it is now on all its inputs, and keep the results on disk."""
        with torch.no_grad(), timed(self.device, self.clock):
            return self.inputs.through(self.run)

    def pass_inputs(self) -> None:
        """BlockFunction the block as it is now on all its inputs, for the sake of hooks."""
        with torch.no_grad(), timed(self.device, self.clock):
            for states in self.inputs:
                self.run(states)

    def advance(self) -> HiddenStates:
        """Settle the next block's inputs: the outputs of this block as it is at the first call."""
        if self._following is None:
            self._following = self.outputs()
        return self._following


def walk(
    model: nn.Module,
    tokens: Tensor,
    context: Context = Context(),
    steps: Sequence[OnTarget] = (),
    clock: Clock | None = None,
) -> Iterator[BlockView]:
    """Visit the decoder blocks in order. The last one is run on its inputs only if the visitor does it.

    Args:
        tokens: ids (windows, seqlen).
        context: for its device.
        steps: of any layers; each view has those of its block.
        clock: what running the model takes is added to it.

    Raises:
        ValueError: the model has no `ModuleList` of blocks.
    """
    device, clock = context.device_for(model), clock or Clock()
    blocks = find_blocks(model)
    with torch.no_grad(), timed(device, clock):
        states, arguments = enter(model, blocks, tokens)
    for index, module in enumerate(blocks):
        with block_at(module, arguments[index], device) as run:
            view = BlockView(model, index, module, device, within(module, steps), states, run, clock)
            yield view
            if index < len(blocks) - 1:
                states = view.advance()
                view.inputs.close()


def within(module: nn.Module, steps: Sequence[T]) -> list[T]:
    """Return the steps whose layers are in a module."""
    members = set(module.modules())
    return [step for step in steps if step.target.module in members]


def outside_blocks(model: nn.Module, steps: Sequence[T]) -> list[T]:
    """Return the steps whose layers are in no decoder block."""
    members = {module for block in find_blocks(model) for module in block.modules()}
    return [step for step in steps if step.target.module not in members]
