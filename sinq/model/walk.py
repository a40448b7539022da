"""Walk through a model's decoder blocks, one at a time on the device, each with its input hidden states.

    for block in walk(model, tokens, context):
        ...                     # read `block.inputs`, run it, change `block.module`

At the end of a visit the changed block runs on its inputs, and the outputs are the next block's inputs.
Nothing else happens implicitly. `block.advance()` runs the block earlier: the next block then gets the
outputs of the block as it is at that call, and later changes do not count. A visitor that changes nothing
walks the unchanged model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sinq.common.timing import Clock, timed
from sinq.model.blocks import BlockFunction, HiddenStates, block_at, find_blocks
from sinq.model.context import Context
from sinq.model.modes import evaluating
from sinq.model.stand_ins import enter, probe
from sinq.model.targets import Target


class OnTarget(Protocol):
    """Work planned for one target, such as a `LayerPlan`."""

    @property
    def target(self) -> Target: ...


T = TypeVar("T", bound=OnTarget)


@dataclass(eq=False)
class BlockView:
    """A decoder block, on the device during its visit."""

    model: nn.Module
    """The whole model; its other blocks stay on their device."""
    index: int
    module: nn.Module
    """The block itself; a visitor may change it in place."""
    device: torch.device
    steps: list[Any]
    """Plans of the layers in this block, from the `steps` of `walk`, in their order."""
    inputs: HiddenStates
    """Input of the block: one tensor (1, seqlen, hidden) for each window."""
    run: BlockFunction
    """The block as a function of hidden states."""
    clock: Clock
    """Time that the walk spends running the model."""
    _following: HiddenStates | None = field(default=None, init=False)

    def outputs(self) -> HiddenStates:
        """Run the present block on all its inputs, and return the results, which are on disk."""
        with torch.no_grad(), timed(self.device, self.clock):
            return self.inputs.through(self.run)

    def pass_inputs(self) -> None:
        """Run the present block on all its inputs, only for its hooks."""
        with torch.no_grad(), timed(self.device, self.clock):
            for window, states in enumerate(self.inputs):
                self.run(states, window)

    def advance(self) -> HiddenStates:
        """Return the next block's inputs: the outputs of this block at the first call."""
        if self._following is None:
            with torch.no_grad(), timed(self.device, self.clock):
                self._following = self.inputs.through(partial(self.run, keep=True))
        return self._following


def walk(
    model: nn.Module,
    tokens: Tensor,
    context: Context = Context(),
    steps: Sequence[OnTarget] = (),
    clock: Clock | None = None,
) -> Iterator[BlockView]:
    """Visit the decoder blocks in order. The last one runs on its inputs only if the visitor runs it.

    Args:
        tokens: ids (windows, seqlen).
        context: gives the device.
        steps: plans of any layers; each view has those of its block. A layer that several blocks share is
            with the first of them.
        clock: receives the time spent running the model.

    Raises:
        ValueError: the model has no `ModuleList` of blocks.
        NotApplicable: its blocks cannot run one by one.
    """
    device, clock = context.device_for(model), clock or Clock()
    blocks = find_blocks(model)
    with evaluating(model):
        with torch.no_grad(), timed(device, clock):
            states, arguments = enter(model, blocks, tokens, probe(model, blocks, tokens))
        waiting = list(steps)
        for index, module in enumerate(blocks):
            inside = within(module, waiting)
            waiting = [step for step in waiting if step not in inside]
            with block_at(module, index, arguments, device) as run:
                view = BlockView(model, index, module, device, inside, states, run, clock)
                yield view
                if index < len(blocks) - 1:
                    states = view.advance()
                    arguments.step()
                    view.inputs.close()


def within(module: nn.Module, plans: Sequence[T]) -> list[T]:
    """Return the plans whose layers are in a module."""
    members = set(module.modules())
    return [layer for layer in plans if not members.isdisjoint(layer.target.modules)]


def outside_blocks(model: nn.Module, plans: Sequence[T]) -> list[T]:
    """Return the plans whose layers are in no decoder block."""
    members = {module for block in find_blocks(model) for module in block.modules()}
    return [layer for layer in plans if members.isdisjoint(layer.target.modules)]
