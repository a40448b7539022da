"""Statistics of a model: which layers share one, and the passes over the text that feed them.

`collect` is the whole interface for someone who wants to know something of a model as it is:

    hessian = Hessian(576, torch.device("cpu"))
    collect(model, {Site(SiteKind.inputs, "model.layers.0.self_attn.q_proj"): hessian}, tokens)

The loop that compresses (`block_loop.py`) asks for statistics of one block at a time instead, so that only these are in memory:
`collect_in_block` takes them of the inputs a block is given in a walk, `dense_statistics` of the model as it was before anything was
compressed. `calibration.py` says when which is meant.

There are two ways to see a tensor. Kinds in `WATCHED` are seen by a hook, wherever their module runs: alone in its block, or in the whole
model. Kinds in `FED` need a pass of their own through the whole model, where it lives, and all their statistics are in memory at once.
A new kind of site is a new entry in one of the two tables.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sinq.blocks import find_blocks, run_model
from sinq.calibration import Calibration
from sinq.clock import Clock, timed
from sinq.context import Context
from sinq.gradients import feed_gradients
from sinq.layers import Target, linear_places
from sinq.plan import Step
from sinq.sites import Site, SiteKind
from sinq.statistics import Statistic
from sinq.walk import BlockView, outside_blocks, walk

Group = list[Step]
"""Steps that share a statistic: query, key and value, or gate and up."""
Watch = Callable[[nn.Module, Callable[[Tensor], None]], RemovableHandle]
"""Calls a function with a tensor of a module whenever the module runs, until the handle is removed."""
Feed = Callable[[nn.Module, Sequence[Target], Tensor, Sequence[Any]], None]
"""Runs a model on windows of tokens, and feeds each target's statistic."""


def watch_inputs(module: nn.Module, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `see` with the first argument of a module whenever it runs."""
    return module.register_forward_pre_hook(lambda _, args: see(args[0]))


WATCHED: Mapping[SiteKind, Watch] = {SiteKind.inputs: watch_inputs}
FED: Mapping[SiteKind, Feed] = {SiteKind.gradient: feed_gradients}


@torch.no_grad()
def collect(
    model: nn.Module,
    wanted: Mapping[Site, Statistic],
    tokens: Tensor,
    context: Context | None = None,
    clock: Clock | None = None,
) -> None:
    """Feed each statistic all that its site sees while windows run through the model as it is now, one block at a time on the device.

    Args:
        tokens: ids (windows, seqlen).
        context: for its device.
        clock: what it takes is added to it.

    Raises:
        ValueError: a site is not in the model, or its statistic is of another kind.
    """
    clock = clock or Clock()
    for site, statistic in wanted.items():
        if statistic.kind is not site.kind:
            raise ValueError(f"{site} cannot feed a {type(statistic).__name__}, which is of {statistic.kind.value}")
    watched = {site.module: statistic for site, statistic in wanted.items() if site.kind in WATCHED}
    if watched:
        _watch_all(model, watched, tokens, context or Context(), clock)
    for kind, feed in FED.items():
        by_name = {site.module: statistic for site, statistic in wanted.items() if site.kind is kind}
        if by_name:
            targets = _targets(model, by_name)
            with timed(targets[0].tensor.device, clock):
                feed(model, targets, tokens, list(by_name.values()))


def share_sites(steps: Sequence[Step], run: Callable[[], None]) -> list[Group]:
    """Group steps whose sites see the same tensor while `run` runs, in the order they see it; others come last, each alone."""
    statistic = steps[0].method.statistic if steps else None
    if statistic is None or statistic.kind not in WATCHED:
        return [[step] for step in steps]
    seen: list[tuple[Tensor, Group]] = []  # holding on to the tensors, so that none is taken for a later one in the same place
    with ExitStack() as stack:
        for step in steps:
            stack.callback(WATCHED[statistic.kind](step.target.module, partial(_note, seen, step)).remove)
        run()
    groups = [group for _, group in seen]
    return groups + [[step] for step in steps if not any(step in group for group in groups)]


def _note(seen: list[tuple[Tensor, Group]], step: Step, tensor: Tensor) -> None:
    group = next((group for known, group in seen if known is tensor), None)
    if group is None:
        seen.append((tensor, [step]))
    elif step not in group:
        group.append(step)


def empty_statistic(group: Group, device: torch.device) -> Statistic:
    """Return what a group's statistic is before anything was seen."""
    kind, target = group[0].method.statistic, group[0].target
    assert kind is not None
    return kind.for_layer((target.numel // target.shape[1], target.shape[1]), device)


def groups_in_block(block: BlockView) -> list[Group]:
    """Group the layers of a block by what they see of its first window."""
    with timed(block.device, block.clock):
        return share_sites(block.steps, lambda: block.run(block.inputs[0]))


def collect_in_block(block: BlockView, groups: Sequence[Group]) -> Sequence[Statistic | None]:
    """Return the statistics of groups of a block's layers, of the block's inputs as the block is now; None where methods have none."""
    if not groups or groups[0][0].method.statistic is None:
        return [None] * len(groups)
    statistics = [empty_statistic(group, block.device) for group in groups]
    with watching(_modules(groups), statistics):
        block.pass_inputs()
    return statistics


def collect_outside(model: nn.Module, groups: Sequence[Group], tokens: Tensor, context: Context, clock: Clock) -> Sequence[Any]:
    """Return the statistics of groups of layers outside the blocks, of the model as it is now; None where methods have none."""
    if not groups or groups[0][0].method.statistic is None:
        return [None] * len(groups)
    statistics = [empty_statistic(group, context.device_for(model)) for group in groups]
    pairs = zip(groups, statistics, strict=True)
    wanted = {Site(statistic.kind, group[0].target.name): statistic for group, statistic in pairs}
    collect(model, wanted, tokens, context, clock)
    return statistics


def dense_statistics(
    model: nn.Module, groups: Sequence[Group], calibration: Calibration, context: Context, clock: Clock
) -> Iterator[tuple[Group, Statistic]]:
    """Yield each group with its statistic of the model as it was at the first one: later changes are not seen.

    A store that has them all is read; otherwise they are collected, and kept in the store if there is one.
    """
    store, device = calibration.store, context.device_for(model)
    if store is not None and all(_key(group) in store for group in groups):
        for group in groups:
            yield group, empty_statistic(group, device).load(store[_key(group)])
        return
    of_kind = _of_blocks if _kind(groups) in WATCHED else _of_whole_model
    for group, statistic in of_kind(model, groups, calibration.tokens, context, clock):
        kept = statistic.tensors()
        if store is not None:
            store[_key(group)] = kept
        yield group, empty_statistic(group, device).load(kept)  # found and fresh ones are the same to the last digit


def _of_blocks(
    model: nn.Module, groups: Sequence[Group], tokens: Tensor, context: Context, clock: Clock
) -> Iterator[tuple[Group, Statistic]]:
    """Statistics a hook can see; those of one block, and of layers outside the blocks, are in memory."""
    firsts = [group[0] for group in groups]
    beside = outside_blocks(model, firsts)
    outside = [group for group in groups if group[0] in beside]
    last = collect_outside(model, outside, tokens, context, clock)  # now, while nothing is compressed
    for block in walk(model, tokens, context, firsts, clock):
        own = [group for group in groups if group[0] in block.steps]
        statistics = [empty_statistic(group, block.device) for group in own]
        with watching(_modules(own), statistics):
            block.advance()
        yield from zip(own, statistics, strict=True)
    yield from zip(outside, last, strict=True)


def _of_whole_model(
    model: nn.Module, groups: Sequence[Group], tokens: Tensor, context: Context, clock: Clock
) -> Iterator[tuple[Group, Statistic]]:
    """Statistics that take a pass of their own, all at once, each on the device of its layer."""
    waiting = deque(empty_statistic(group, group[0].target.tensor.device) for group in groups)
    wanted = {Site(_kind(groups), group[0].target.name): one for group, one in zip(groups, waiting, strict=True)}
    collect(model, wanted, tokens, context, clock)
    wanted.clear()
    for group in groups:
        yield group, waiting.popleft()  # so that each is freed when its layer is done


def _kind(groups: Sequence[Group]) -> SiteKind:
    statistic = groups[0][0].method.statistic
    assert statistic is not None
    return statistic.kind


def _key(group: Group) -> str:
    """Name of a group's statistic in a store."""
    kind = group[0].method.statistic
    assert kind is not None
    return f"{group[0].target.name}.{kind.__name__}"


def _modules(groups: Sequence[Group]) -> list[nn.Module]:
    return [group[0].target.module for group in groups]


@contextmanager
def watching(modules: Iterable[nn.Module], statistics: Iterable[Any]) -> Iterator[None]:
    """Feed each statistic what it is of, in its module, for as long as the context lasts."""
    with ExitStack() as stack:
        for module, statistic in zip(modules, statistics, strict=True):
            stack.callback(WATCHED[statistic.kind](module, statistic.update).remove)
        yield


def _watch_all(model: nn.Module, by_name: Mapping[str, Statistic], tokens: Tensor, context: Context, clock: Clock) -> None:
    """Feed statistics inside the blocks in a walk, those outside by running the whole model where it lives."""
    modules = {name: _module(model, name) for name in by_name}
    members = {module for block in find_blocks(model) for module in block.modules()}
    inside = [name for name, module in modules.items() if module in members]
    outside = [name for name in by_name if name not in inside]
    if inside:
        with watching([modules[name] for name in inside], [by_name[name] for name in inside]):
            for block in walk(model, tokens, context, clock=clock):
                block.advance()
    if outside:
        watched = watching([modules[name] for name in outside], [by_name[name] for name in outside])
        with timed(context.device_for(model), clock), watched:
            for window in tokens:
                run_model(model, window)


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} has no module {name!r}; see model.named_modules()") from error


def _targets(model: nn.Module, names: Iterable[str]) -> list[Target]:
    known = {target.name: target for target in linear_places(model)}
    for name in names:
        if name not in known:
            raise ValueError(f"{type(model).__name__} has no linear layer {name!r}; one is {next(iter(known))!r}")
    return [known[name] for name in names]
