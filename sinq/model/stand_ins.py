"""Entry to the blocks of a model: what they are called with, learned from runs with stand-ins in their place.

A stand-in returns its input in the form its block returns (a tensor, a tuple with more in it), which one
ordinary run of the model shows (`probe`). So the model's code around the blocks runs as it does with them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sinq.common.errors import NotApplicable
from sinq.model.block_arguments import BlockArguments, Call, Key, split_call
from sinq.model.blocks import FOREIGN_ERRORS, HiddenStates, block_at, run_model

PROBE_WINDOWS, PROBE_TOKENS = 2, 16
TOLERANCE = 1e-2
"""Largest relative difference of hidden states in the probe; half-precision kernels differ by less."""


@dataclass(frozen=True)
class Visit:
    """Run of a block in an ordinary forward pass."""

    block: int
    inputs: Tensor
    output: Any


def probe(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> list[Any]:
    """Return what each block returns in an ordinary run; check on a few tokens that blocks can run alone.

    Args:
        tokens: ids (windows, seqlen).

    Raises:
        NotApplicable: run one by one, the blocks do not do what they do in the model.
    """
    short = tokens[:PROBE_WINDOWS, :PROBE_TOKENS]
    ordinary = [_visits(model, blocks, window) for window in short]
    for visits in ordinary:
        if [visit.block for visit in visits] != list(range(len(blocks))):
            raise _not_alone(model, "they do not run once each, in order")
    forms = [visit.output for visit in ordinary[0]]
    try:
        difference = _difference(model, blocks, short, forms, ordinary)
    except FOREIGN_ERRORS as error:
        raise _not_alone(model, f"{type(error).__name__}: {error}") from error
    if difference > TOLERANCE:
        raise _not_alone(model, f"their inputs then differ by {difference:.1%} from the whole model's")
    return forms


def _not_alone(model: nn.Module, reason: str) -> NotApplicable:
    return NotApplicable(
        f"the blocks of {type(model).__name__} cannot run one by one, as calibration needs: {reason};"
        " use a method without calibration"
    )


def _visits(model: nn.Module, blocks: nn.ModuleList, window: Tensor) -> list[Visit]:
    """Run a model on one window, and return the runs of its blocks."""
    visits: list[Visit] = []
    entered: list[Tensor] = []
    handles = []
    for index, block in enumerate(blocks):

        def see_input(_: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(split_call(args, kwargs)[0].clone())

        def see_output(_: nn.Module, __: Any, output: Any, index: int = index) -> None:
            visits.append(Visit(index, entered[-1], output))

        handles.append(block.register_forward_pre_hook(see_input, with_kwargs=True))
        handles.append(block.register_forward_hook(see_output))
    try:
        run_model(model, window)
    finally:
        for handle in handles:
            handle.remove()
    return visits


def _difference(
    model: nn.Module,
    blocks: nn.ModuleList,
    tokens: Tensor,
    forms: Sequence[Any],
    ordinary: Sequence[Sequence[Visit]],
) -> float:
    """Return the largest relative difference of a block's inputs, run alone, from those in the model."""
    states, arguments = enter(model, blocks, tokens, forms)
    device, worst = next(model.parameters()).device, 0.0
    for index, block in enumerate(blocks):
        for found, visits in zip(states, ordinary, strict=True):
            expected = visits[index].inputs.float().cpu()
            norm = torch.linalg.vector_norm(expected).item()
            off = torch.linalg.vector_norm(found.float() - expected).item()
            worst = max(worst, off / norm if norm else off)
        if index < len(blocks) - 1:
            with block_at(block, index, arguments, device) as run:
                states = states.through(partial(run, keep=True))
            arguments.step()
    return worst


def enter(
    model: nn.Module, blocks: nn.ModuleList, tokens: Tensor, forms: Sequence[Any]
) -> tuple[HiddenStates, BlockArguments]:
    """Return the hidden states of every window before the first block, and the blocks' other arguments.

    The model runs with stand-ins for its blocks, so this costs an embedding look-up.

    Args:
        tokens: ids (windows, seqlen).
        forms: what each block returns (`probe`).
    """
    hidden, arguments = HiddenStates(), BlockArguments()
    for window in tokens:
        calls: dict[int, Call] = {}
        given: dict[int, Key] = {}
        alive: list[Any] = []  # or another object may get the `id` of one that is gone
        with _standing_in(blocks, forms, hidden, calls, given, alive):
            run_model(model, window)
        arguments.add([calls[index] for index in range(len(blocks))], given)
    return hidden, arguments


@contextmanager
def _standing_in(
    blocks: nn.ModuleList,
    forms: Sequence[Any],
    hidden: HiddenStates,
    calls: dict[int, Call],
    given: dict[int, Key],
    alive: list[Any],
) -> Iterator[None]:
    """Replace the forward of every block by one that notes its call within the context."""

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            states, calls[index] = split_call(args, kwargs)
            if index == 0:
                hidden.append(states)
            output = _in_form(states, forms[index])
            alive.extend(output if isinstance(output, tuple | list) else ())
            if isinstance(output, tuple | list):
                extras = enumerate(output[1:], 1)
                given.update({id(item): (index, k) for k, item in extras if isinstance(item, Tensor)})
            return output

        return forward

    replaced = [(block, vars(block).get("forward")) for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.forward = stand_in(index)
        yield
    finally:
        for block, before in replaced:
            if before is None:
                del block.forward
            else:
                block.forward = before


def _in_form(states: Tensor, form: Any) -> Any:
    """Return hidden states in the form of what a block returned; tensors beside them are copies."""
    if isinstance(form, Tensor):
        return states
    extras = [item.clone() if isinstance(item, Tensor) else item for item in form[1:]]
    return type(form)((states, *extras))
