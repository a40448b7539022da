"""Collection of statistics of a model: sites name its tensors, and windows of text run through it.

    hessian = Hessian(576, torch.device("cpu"))
    collect(model, {Site(SiteKind.inputs, "model.layers.0.self_attn.q_proj"): hessian}, tokens)

A tensor is seen in one of two ways. Kinds in `WATCHED` are seen by a hook, wherever their module runs: alone
in its block, or in the whole model. Kinds in `FED` need a separate pass through the whole model, on its own
device. A new kind of site is a new entry in one of the two tables.

The loop that compresses takes statistics one block at a time: see `methods/layer_statistics.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sinq.calibration.gradients import feed_gradients
from sinq.calibration.sites import Site, SiteKind
from sinq.calibration.statistics import Statistic
from sinq.common.timing import Clock, timed
from sinq.model.blocks import find_blocks, run_model
from sinq.model.context import Context
from sinq.model.targets import Target, linear_places
from sinq.model.walk import walk

Watch = Callable[[nn.Module, Callable[[Tensor], None]], RemovableHandle]
"""Function that calls another one with a tensor of a module at each run, until the handle is removed."""
Feed = Callable[[nn.Module, Sequence[Target], Tensor, Sequence[Any]], None]
"""Function that runs a model on windows of tokens and feeds each target's statistic."""


def watch_inputs(module: nn.Module, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `see` with the first argument of a module whenever it runs."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(args[0] if args else next(iter(kwargs.values())))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


class Observer(Protocol):
    """Anything that takes the tensors of a site, beside the statistics that methods declare."""

    @property
    def kind(self) -> SiteKind: ...

    def update(self, inputs: Tensor, /) -> None: ...


WATCHED: Mapping[SiteKind, Watch] = {SiteKind.inputs: watch_inputs}
FED: Mapping[SiteKind, Feed] = {SiteKind.gradient: feed_gradients}


@torch.no_grad()
def collect(
    model: nn.Module,
    wanted: Mapping[Site, Statistic | Observer],
    tokens: Tensor,
    context: Context = Context(),
    clock: Clock | None = None,
) -> None:
    """Feed each statistic the tensors of its site while windows run through the model in its present state.

    One block at a time is on the device, except where a kind needs the whole model.

    Args:
        tokens: ids (windows, seqlen).
        context: only its device is used.
        clock: the time of running the model is added to it.

    Raises:
        ValueError: a site is not in the model, or its statistic is of another kind.
    """
    for site, statistic in wanted.items():
        if statistic.kind is not site.kind:
            raise ValueError(
                f"{site} cannot feed a {type(statistic).__name__}, which is of {statistic.kind.value}"
            )
    clock = clock or Clock()
    watched = [
        (_module(model, site.module), statistic) for site, statistic in wanted.items() if site.kind in WATCHED
    ]
    if watched:
        _feed_watched(model, watched, tokens, context, clock)
    for kind, feed in FED.items():
        of_kind = {site.module: statistic for site, statistic in wanted.items() if site.kind is kind}
        if of_kind:
            with timed(next(model.parameters()).device, clock):
                feed(model, _targets(model, of_kind), tokens, list(of_kind.values()))


def _feed_watched(
    model: nn.Module,
    watched: Sequence[tuple[nn.Module, Statistic | Observer]],
    tokens: Tensor,
    context: Context,
    clock: Clock,
) -> None:
    """Feed statistics inside the blocks in a walk, and the others by running the whole model."""
    members = {module for block in find_blocks(model) for module in block.modules()}
    inside = [(module, statistic) for module, statistic in watched if module in members]
    outside = [(module, statistic) for module, statistic in watched if module not in members]
    if inside:
        for block in walk(model, tokens, context, clock=clock):
            with watching(inside):
                block.advance()
    if outside:
        with timed(next(model.parameters()).device, clock), watching(outside):
            for window in tokens:
                run_model(model, window)


@contextmanager
def watching(pairs: Iterable[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Feed each statistic the tensors of its module whenever that runs within the context."""
    with ExitStack() as stack:
        for module, statistic in pairs:
            stack.callback(WATCHED[statistic.kind](module, statistic.update).remove)
        yield


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"{type(model).__name__} has no module {name!r}; see model.named_modules()"
        ) from error


def _targets(model: nn.Module, names: Iterable[str]) -> list[Target]:
    known = {target.name: target for target in linear_places(model)}
    for name in names:
        if name not in known:
            example = next(iter(known))
            raise ValueError(f"{type(model).__name__} has no linear layer {name!r}; one is {example!r}")
    return [known[name] for name in names]
