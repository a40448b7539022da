"""Statistics for the loop over blocks: which layers share one, and in which state of the model it is taken.

Layers that are given the same tensor (query, key and value; gate and up) are a *group* and share a statistic.
One pass over a few tokens shows the groups and the order in which they run.

`collect_in_block` and `dense_statistics` are the two meanings of `Calibration.sequential`. The first takes
statistics of the inputs a block is given in a walk, behind compressed blocks. The second takes statistics of
the model as it was before anything was compressed. Either way only the statistics of one block are in memory,
unless their kind needs a pass of the whole model (gradients): then all are, on the model's device.
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
from sinq.model.blocks import find_blocks
from sinq.model.context import Context
from sinq.model.walk import BlockView, outside_blocks, walk

Group = list[LayerPlan]
"""Plans of layers that share a statistic."""


def seen_in_blocks(kind: type[Statistic] | None) -> bool:
    """Return True if a statistic can be taken in a block that runs alone, and so behind compressed blocks."""
    return kind is not None and kind.kind in WATCHED


def find_groups(plans: Sequence[LayerPlan], run: Callable[[], object]) -> list[Group]:
    """Group layers that see the same tensor while `run` runs, in the order they see it.

    Layers that see none come last, each alone. Without statistics, or with statistics that are not seen in
    blocks, nothing is shared and nothing runs.
    """
    kind = plans[0].method.statistic if plans else None
    if kind is None or kind.kind not in WATCHED:
        return [[layer] for layer in plans]
    # Tensors are held, so that none is mistaken for a later one at the same address.
    seen: list[tuple[Tensor, Group]] = []
    with ExitStack() as stack:
        for layer in plans:
            for module in layer.target.modules:
                stack.callback(WATCHED[kind.kind](module, partial(_note, seen, layer)).remove)
        run()
    groups = [group for _, group in seen]
    return groups + [[layer] for layer in plans if not any(layer in group for group in groups)]


def _note(seen: list[tuple[Tensor, Group]], layer: LayerPlan, tensor: Tensor) -> None:
    """Add a layer to the group of the first tensor it sees; one that has several modules sees several."""
    if any(layer in group for _, group in seen):
        return
    group = next((group for known, group in seen if known is tensor), None)
    if group is None or any(len(other.target.modules) > 1 for other in (layer, group[0])):
        seen.append((tensor, [layer]))
    else:
        group.append(layer)


def groups_in_block(block: BlockView) -> list[Group]:
    """Group the layers of a block by the tensors they see while its first window runs."""
    with timed(block.device, block.clock):
        return find_groups(block.steps, lambda: block.run(block.inputs[0], 0))


def collect_in_block(block: BlockView, groups: Sequence[Group]) -> list[Statistic] | list[None]:
    """Return a statistic of each group of a block's layers, taken of the block in its present state.

    Each is None where methods have no statistic.
    """
    if not groups or groups[0][0].method.statistic is None:
        return [None] * len(groups)
    statistics = [_empty(group, block.device) for group in groups]
    with watching(_watched(groups, statistics)):
        block.pass_inputs()
    return statistics


def collect_in_model(
    model: nn.Module,
    groups: Sequence[Group],
    device: torch.device,
    tokens: Tensor,
    clock: Clock,
) -> list[Statistic] | list[None]:
    """Return a statistic of each group of layers, of the model in its present state, all on one device.

    Each is None where methods have no statistic.

    Args:
        tokens: ids (windows, seqlen).
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
    """Yield each group with a statistic of the model in its state at the first group.

    Later changes of the model are not seen. A store that has all statistics is read. Otherwise they are
    collected, and kept in the store if there is one.
    """
    store, device = calibration.store, context.device_for(model)
    if store is not None and all(_key(group) in store for group in groups):
        for group in groups:
            yield group, _empty(group, device).load(store[_key(group)])
        return
    collect_groups = _block_by_block if seen_in_blocks(groups[0][0].method.statistic) else _all_at_once
    for group, statistic in collect_groups(model, groups, calibration.tokens, device, clock):
        kept = statistic.tensors()
        if store is not None:
            store[_key(group)] = kept
        yield group, _empty(group, device).load(kept)  # stored and fresh ones are equal to the last digit


def _block_by_block(
    model: nn.Module,
    groups: Sequence[Group],
    tokens: Tensor,
    device: torch.device,
    clock: Clock,
) -> Iterator[tuple[Group, Any]]:
    """Yield the groups with statistics taken in a walk through the blocks, then those outside the blocks."""
    firsts_outside = outside_blocks(model, [group[0] for group in groups])
    outside = [group for group in groups if group[0] in firsts_outside]
    last = collect_in_model(model, outside, device, tokens, clock)  # now, while nothing is compressed
    inside = _by_block(model, groups)
    waiting: dict[int, Statistic] = {}
    for block in walk(model, tokens, Context(device=device), clock=clock):
        here = inside[block.index]
        waiting |= {number: _empty(groups[number], device) for number in here if number not in waiting}
        with watching(_watched([groups[number] for number in here], [waiting[number] for number in here])):
            block.advance()
        later = {number for numbers in inside[block.index + 1 :] for number in numbers}
        for number in here:
            if number not in later:
                yield groups[number], waiting.pop(number)
    yield from zip(outside, last, strict=True)


def _by_block(model: nn.Module, groups: Sequence[Group]) -> list[list[int]]:
    """Return the numbers of the groups in each block; a group of shared layers is in several."""
    members = [set(block.modules()) for block in find_blocks(model)]
    return [
        [number for number, group in enumerate(groups) if not inside.isdisjoint(group[0].target.modules)]
        for inside in members
    ]


def _all_at_once(
    model: nn.Module,
    groups: Sequence[Group],
    tokens: Tensor,
    device: torch.device,
    clock: Clock,
) -> Iterator[tuple[Group, Any]]:
    """Yield the groups with statistics that were collected together, on the model's device."""
    home = next(model.parameters()).device  # `device` may have no room for all of them
    waiting = deque(collect_in_model(model, groups, home, tokens, clock))
    for group in groups:
        yield group, waiting.popleft()  # so each is freed when its group is done


def _empty(group: Group, device: torch.device) -> Statistic:
    """Return an empty statistic for a group; fused experts count all their matrices."""
    kind, target = group[0].method.statistic, group[0].target
    assert kind is not None
    statistic = kind.for_layer((target.numel // target.shape[1], target.shape[1]), device)
    statistic.layer = f"layer {', '.join(layer.target.name for layer in group)}"
    return statistic


def _key(group: Group) -> str:
    """Name of a group's statistic in a store."""
    kind = group[0].method.statistic
    assert kind is not None
    return f"{group[0].target.name}.{kind.__name__}"


def _watched(groups: Sequence[Group], statistics: Sequence[Statistic]) -> list[tuple[nn.Module, Statistic]]:
    """Return each module of each group's first layer with the group's statistic."""
    pairs = zip(groups, statistics, strict=True)
    return [(module, statistic) for group, statistic in pairs for module in group[0].target.modules]
