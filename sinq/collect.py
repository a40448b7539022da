"""Where statistics come from: which layers share one, and the passes over the text that fill them.

Layers that are given the same tensor (query, key and value; gate and up) are a *group*. Which ones, and in which order they run, is seen
in one pass of the dense model over a few tokens.

Where a method tunes blocks (`tuning.py`), the outputs of each block while it is still dense are kept on disk, beside its inputs.

`behind_compressed` and `of_dense` are the two meanings of `Calibration.sequential`. Both are generators of (group, statistic): the loop
compresses each group before it asks for the next, one block at a time is on `place`, and only its statistics are in memory.

Statistics of the loss come from `gradients.py`. They are always the dense model's, no two layers share one, and those of all layers are in
memory at once, where the model lives.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinq.blocks import HiddenStates, block_at, enter, find_blocks, run_model
from sinq.calibration import Calibration
from sinq.gradients import feed_gradients
from sinq.plan import Step
from sinq.statistics import InputStatistic, Origin, Statistic
from sinq.tuning import Finished

Group = list[Step]
"""Steps that share their inputs."""
Finish = Callable[[list[Step], Finished], None]
"""What is done to a block all of whose layers are compressed, and the steps of these layers."""


def find_groups(model: nn.Module, steps: list[Step], tokens: Tensor) -> list[Group]:
    """Steps that share a statistic, all of one kind."""
    return input_groups(model, steps, tokens) if _origin(steps) is Origin.inputs else [[step] for step in steps]


def collected(
    model: nn.Module, groups: list[Group], calibration: Calibration, place: torch.device, finish: Finish
) -> Iterator[tuple[Group, Statistic]]:
    """The statistic of each group, as `calibration` wants it taken."""
    behind = calibration.sequential and _origin(groups[0]) is Origin.inputs
    return (behind_compressed if behind else of_dense)(model, groups, calibration, place, finish)


def input_groups(model: nn.Module, steps: list[Step], tokens: Tensor) -> list[Group]:
    """Steps whose layers are given the same tensor, in the order the model runs them; layers it does not run (experts) one by one."""
    seen: list[tuple[Tensor, Group]] = []  # holding on to the tensors, so that none is taken for a later one in the same place

    def hook(step: Step) -> Callable[[nn.Module, Any], None]:
        def note(_: nn.Module, args: Any) -> None:
            group = next((group for tensor, group in seen if tensor is args[0]), None)
            if group is None:
                seen.append((args[0], [step]))
            elif step not in group:
                group.append(step)

        return note

    with ExitStack() as stack:
        for step in steps:
            stack.callback(step.target.module.register_forward_pre_hook(hook(step)).remove)
        run_model(model, tokens)
    groups = [group for _, group in seen]
    return groups + [[step] for step in steps if not any(step in group for group in groups)]


def behind_compressed(
    model: nn.Module, groups: list[Group], calibration: Calibration, place: torch.device, finish: Finish
) -> Iterator[tuple[Group, Statistic]]:
    """Statistics of inputs that went through compressed predecessors: the caller compresses each group before it asks for the next.

    Args:
        finish: called for each block, where the method tunes blocks.
    """
    blocks = find_blocks(model)
    inside, outside = _by_block(blocks, groups)
    hidden, arguments = enter(model, blocks, calibration.tokens)
    for index, block in enumerate(blocks):
        own = inside[index]
        one_by_one, tuned = own and own[0][0].method.true_sequential, bool(own) and own[0][0].method.tuning is not None
        with block_at(block, arguments[index], place) as run:
            dense = HiddenStates()
            for at_once in [[group] for group in own] if one_by_one else [own] * bool(own):
                with _collecting(at_once, place) as statistics:
                    for states in hidden:
                        output = run(states)
                        if tuned and at_once[0] is own[0]:  # nothing of the block is compressed yet
                            dense.append(output)
                yield from zip(at_once, statistics, strict=True)
            if tuned:
                finish([step for group in own for step in group], Finished(block, run, hidden, dense))
            if outside or index < len(blocks) - 1:
                hidden = hidden.through(run)
    yield from _of_whole_model(model, outside, calibration, place)


def of_dense(
    model: nn.Module, groups: list[Group], calibration: Calibration, place: torch.device, finish: Finish
) -> Iterator[tuple[Group, Statistic]]:
    """Statistics of the dense model: from the store if it has them all, else collected block by block, and kept there.

    `finish` is not called: no block runs behind compressed ones here, and `plan.py` refuses methods that tune.
    """
    store = calibration.store
    names = [f"{group[0].target.name}.{_kind(group).__name__}" for group in groups]
    if store is not None and all(name in store for name in names):
        for group, name in zip(groups, names, strict=True):
            yield group, _accumulator(group, place).restore(store[name])
        return
    collect = _collected_from_dense if _origin(groups[0]) is Origin.inputs else of_loss
    for group, statistic in collect(model, groups, calibration, place):
        kept = statistic.tensors()
        if store is not None:
            store[names[groups.index(group)]] = kept
        yield group, _accumulator(group, place).restore(kept)  # so that found and fresh ones are the same to the last digit


def _collected_from_dense(
    model: nn.Module, groups: list[Group], calibration: Calibration, place: torch.device
) -> Iterator[tuple[Group, Statistic]]:
    blocks = find_blocks(model)
    inside, outside = _by_block(blocks, groups)
    last = list(_of_whole_model(model, outside, calibration, place))  # now, while nothing is compressed
    hidden, arguments = enter(model, blocks, calibration.tokens)
    for index, block in enumerate(blocks):
        with block_at(block, arguments[index], place) as run:
            with _collecting(inside[index], place) as statistics:
                hidden = hidden.through(run)
            yield from zip(inside[index], statistics, strict=True)
    yield from last


def of_loss(model: nn.Module, groups: list[Group], calibration: Calibration, place: torch.device) -> Iterator[tuple[Group, Statistic]]:
    """Statistics of the gradients of the dense model's loss; `place` is not used: the whole model runs, where it lives."""
    waiting = [_accumulator(group, group[0].target.tensor.device) for group in groups]
    feed_gradients(model, [group[0].target for group in groups], calibration.tokens, waiting)
    waiting.reverse()
    for group in groups:
        yield group, waiting.pop()  # so that each is freed when its layer is done


def _of_whole_model(
    model: nn.Module, groups: list[Group], calibration: Calibration, place: torch.device
) -> Iterator[tuple[Group, Statistic]]:
    """Statistics of layers outside the blocks, of the model as it is now."""
    if groups:
        with _collecting(groups, place) as statistics:
            for window in calibration.tokens:
                run_model(model, window)
        yield from zip(groups, statistics, strict=True)


def _by_block(blocks: nn.ModuleList, groups: list[Group]) -> tuple[list[list[Group]], list[Group]]:
    """The groups of each block, and those of none."""
    members = [set(block.modules()) for block in blocks]
    inside = [[group for group in groups if group[0].target.module in own] for own in members]
    return inside, [group for group in groups if not any(group in own for own in inside)]


def _kind(group: Group) -> type[Statistic]:
    kind = group[0].method.statistic
    assert kind is not None
    return kind


def _origin(steps: list[Step]) -> Origin:
    return _kind(steps).origin


def _accumulator(group: Group, place: torch.device) -> Any:
    target = group[0].target
    columns = target.shape[1]
    return _kind(group).for_layer((target.numel // columns, columns), place)


@contextmanager
def _collecting(groups: list[Group], place: torch.device) -> Iterator[list[InputStatistic]]:
    """Feeds the inputs of each group to an accumulator while its block runs."""
    statistics: list[InputStatistic] = [_accumulator(group, place) for group in groups]
    with ExitStack() as stack:
        for group, statistic in zip(groups, statistics, strict=True):
            hook = group[0].target.module.register_forward_pre_hook(lambda _, args, into=statistic: into.update(args[0]))
            stack.callback(hook.remove)
        yield statistics
