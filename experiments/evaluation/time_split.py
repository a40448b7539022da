"""Shares of an eager step's time: linear layers, attention, the output head, and the rest.

Hooks read a clock around modules, so the parts are those of one pass and add up to it. A module's time is
without that of modules inside it: attention is scores, softmax and cache; the rest is norms, activations,
embeddings, and Python between modules. A clock around a module costs about a microsecond. On a GPU a module
only queues work, so there is no split.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import nn

from sinq.common.errors import NotApplicable
from sinq.model.attention import attentions
from sinq.model.experts import CompressedExperts
from sinq.model.linear import CompressedLinear
from sinq.model.targets import linear_places, output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPRESSED = (CompressedLinear, CompressedExperts)


class _Clock:
    """Seconds of modules by part, each without the modules inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._open: list[list[float]] = []
        """Start of each module that is running, and the seconds of those inside it."""

    def begin(self, *call: Any) -> None:
        self._open.append([perf_counter(), 0.0])

    def end(self, part: str, *call: Any) -> None:
        start, inside = self._open.pop()
        whole = perf_counter() - start
        self.spent[part] = self.spent.get(part, 0.0) + whole - inside
        if self._open:
            self._open[-1][1] += whole


def time_split(model: "PreTrainedModel", work: Callable[[], object]) -> dict[str, float]:
    """Return the shares of the time of `work`, which calls the model on a CPU; they add up to 1."""
    clock = _Clock()
    with ExitStack() as stack:
        for module, part in _parts(model).items():
            stack.enter_context(module.register_forward_pre_hook(clock.begin))
            stack.enter_context(module.register_forward_hook(partial(clock.end, part)))
        start = perf_counter()
        work()
        whole = perf_counter() - start
    shares = {part: seconds / whole for part, seconds in clock.spent.items()}
    return shares | {"rest": 1 - sum(shares.values())}


def _parts(model: "PreTrainedModel") -> dict[nn.Module, str]:
    """Return the part of each module that is timed; experts count as linear layers."""
    parts = {target.module: "linear" for target in linear_places(model)}
    parts |= {each: "linear" for each in model.modules() if isinstance(each, COMPRESSED)}
    with suppress(NotApplicable):  # attention that is not found counts as the rest
        parts |= dict.fromkeys(attentions(model).values(), "attention")
    head = output_head(model)
    return parts if head is None else parts | {head: "head"}
