"""Statistics for the loop that compresses: which layers share one, and where each is taken.

Layers that are given the same tensor (query, key and value; gate and up) are a *group* and share a statistic. Which
ones, and in which order they run, is seen in one pass over a few tokens.

`collect_in_block` and `dense_statistics` are the two meanings of `Calibration.sequential`: statistics of the inputs a
block is given in a walk, behind compressed blocks, and statistics of the model as it was before anything was
compressed. Of both only those of one block are in memory, unless their kind takes a pass of the whole model
(gradients): then all are, where the model lives.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sinq.calibration.collect import WATCHED, collect, watching
from sinq.calibration.data import Calibration
from sinq.calibration.sites import Site
from sinq.calibration.statistics import Statistic
from sinq.common.timing import Clock, timed
from sinq.methods.plan import LayerPlan
from sinq.model.context import Context
from sinq.model.walk import BlockView, outside_blocks, walk

Group = list[LayerPlan]
"""Steps that share a statistic."""


def seen_in_blocks(kind: type[Statistic] | None) -> bool:
    """Whether a statistic is taken where a block runs alone, so that it can be taken behind compressed ones."""
    return kind is not None and kind.kind in WATCHED


def find_groups(steps: Sequence[LayerPlan], run: Callable[[], object]) -> list[Group]:
    """Group steps whose layers see the same tensor while `run` runs, in the order they see it; others come last, each alone.

    Where statistics are none, or not seen in blocks, nothing is shared and nothing runs.
    """
    kind = steps[0].method.statistic if steps else None
    if kind is None or kind.kind not in WATCHED:
        return [[step] for step in steps]
    seen: list[
        tuple[Tensor, Group]
    ] = []  # holds the tensors, so that none is taken for a later one in the same place
    with ExitStack() as stack:
        for step in steps:
            stack.callback(WATCHED[kind.kind](step.target.module, partial(_note, seen, step)).remove)
        run()
    groups = [group for _, group in seen]
    return groups + [[step] for step in steps if not any(step in group for group in groups)]


def _note(seen: list[tuple[Tensor, Group]], step: LayerPlan, tensor: Tensor) -> None:
    group = next((group for known, group in seen if known is tensor), None)
    if group is None:
        seen.append((tensor, [step]))
    elif step not in group:
        group.append(step)


def groups_in_block(block: BlockView) -> list[Group]:
    """Group the layers of a block by what they see of its first window."""
    with timed(block.device, block.clock):
        return find_groups(block.steps, lambda: block.run(block.inputs[0]))


def collect_in_block(block: BlockView, groups: Sequence[Group]) -> list[Statistic] | list[None]:
    """Return the statistics of groups of a block's layers, of the block's inputs as the block is now.

    None for each where methods have no statistic.
    """
    if not groups or groups[0][0].method.statistic is None:
        return [None] * len(groups)
    statistics = [_empty(group, block.device) for group in groups]
    with watching(zip(_modules(groups), statistics, strict=True)):
        block.pass_inputs()
    return statistics


def collect_in_model(
    model: nn.Module,
    groups: Sequence[Group],
    device: torch.device,
    tokens: Tensor,
    clock: Clock,
) -> list[Statistic] | list[None]:
    """Return the statistics of groups of layers, all at once, on a device, of the model as it is now.

    None for each where methods have no statistic.
    """
    if not groups or groups[0][0].method.statistic is None:
        return [None] * len(groups)
    statistics = [_empty(group, device) for group in groups]
    pairs = zip(groups, statistics, strict=True)
    sites = {Site(statistic.kind, group[0].target.name): statistic for group, statistic in pairs}
    collect(model, sites, tokens, Context(device=device), clock)
    return statistics


def dense_statistics(
    model: nn.Module,
    groups: Sequence[Group],
    calibration: Calibration,
    context: Context,
    clock: Clock,
) -> Iterator[tuple[Group, Statistic]]:
    """Yield each group with its statistic of the model as it was at the first one: later changes are not seen.

    A store that has them all is read; otherwise they are collected, and kept in the store if there is one.
    """
    store, device = calibration.store, context.device_for(model)
    if store is not None and all(_key(group) in store for group in groups):
        for group in groups:
            yield group, _empty(group, device).load(store[_key(group)])
        return
    by_block = seen_in_blocks(groups[0][0].method.statistic)
    collected = (_block_by_block if by_block else _all_at_once)(
        model, groups, calibration.tokens, device, clock
    )
    for group, statistic in collected:
        kept = statistic.tensors()
        if store is not None:
            store[_key(group)] = kept
        yield group, _empty(group, device).load(kept)  # found and fresh ones are the same to the last digit


def _block_by_block(
    model: nn.Module,
    groups: Sequence[Group],
    tokens: Tensor,
    device: torch.device,
    clock: Clock,
) -> Iterator[tuple[Group, Any]]:
    firsts = [group[0] for group in groups]
    beside = outside_blocks(model, firsts)
    outside = [group for group in groups if group[0] in beside]
    last = collect_in_model(model, outside, device, tokens, clock)  # now, while nothing is compressed
    for block in walk(model, tokens, Context(device=device), firsts, clock):
        own = [group for group in groups if group[0] in block.steps]
        statistics = [_empty(group, device) for group in own]
        with watching(zip(_modules(own), statistics, strict=True)):
            block.advance()
        yield from zip(own, statistics, strict=True)
    yield from zip(outside, last, strict=True)


def _all_at_once(
    model: nn.Module,
    groups: Sequence[Group],
    tokens: Tensor,
    device: torch.device,
    clock: Clock,
) -> Iterator[tuple[Group, Any]]:
    home = next(model.parameters()).device  # there may be no room for all of them on `device`
    waiting = deque(collect_in_model(model, groups, home, tokens, clock))
    for group in groups:
        yield group, waiting.popleft()  # so that each is freed when its layer is done


def _empty(group: Group, device: torch.device) -> Statistic:
    kind, target = group[0].method.statistic, group[0].target
    assert kind is not None
    return kind.for_layer((target.numel // target.shape[1], target.shape[1]), device)


def _key(group: Group) -> str:
    """Name of a group's statistic in a store."""
    kind = group[0].method.statistic
    assert kind is not None
    return f"{group[0].target.name}.{kind.__name__}"


def _modules(groups: Sequence[Group]) -> list[nn.Module]:
    return [group[0].target.module for group in groups]
