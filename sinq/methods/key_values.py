"""Rounding of keys and values after a method has compressed the weights: KV8, KV4, KV2.

Any method may be inside, the dense model included. Static scales, and the channels that fire, are found
behind everything that the inner method did, its rounded activations among them. The seam is
`model/key_values.py`, the format in `formats/key_values.py`.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from sinq.algorithms.saliency import largest
from sinq.calibration.data import Calibration
from sinq.common.errors import PASS_CALIBRATION, NotApplicable
from sinq.common.timing import Clock
from sinq.formats.key_values import KeyValueFormat, StateFormat
from sinq.methods.base import Method
from sinq.methods.plan import require_usable_weights
from sinq.methods.report import CompressionReport
from sinq.methods.wrapper import MethodWrapper, require_once
from sinq.model.attention import head_shapes
from sinq.model.context import Context
from sinq.model.edits import edit
from sinq.model.key_value_edits import RoundKeyValues, key_value_stores, static_stores, watching
from sinq.model.key_values import KeyValueStore
from sinq.model.rounded_queries import require_reached
from sinq.model.searched_keys import SearchedKeys
from sinq.model.seen_attention import SeenAttention
from sinq.model.walk import walk


@dataclass(frozen=True)
class KeptFormat:
    """Label of a format of weights, if there is one, with that of keys and values."""

    weights: Any
    kv: KeyValueFormat

    @property
    def label(self) -> str:
        """ "4-bit g64 KV4", or "KV4" where weights have no one format."""
        return self.kv.label if self.weights is None else f"{self.weights.label} {self.kv.label}"


@dataclass(frozen=True)
class KeyValues(MethodWrapper):
    """A model compressed by `inner`, whose keys and values are rounded when attention keeps them.

    Raises:
        NotApplicable: nothing would be rounded.
    """

    name: ClassVar[str] = "key_values"

    inner: Method
    kv: KeyValueFormat = field(default_factory=lambda: KeyValueFormat(StateFormat(4), StateFormat(4)))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_once(self)
        if not self.kv.rounds:
            raise NotApplicable("kv with 16 bits rounds nothing; use kv.keys.bits=4 kv.values.bits=4")

    @property
    def format(self) -> KeptFormat:
        """Label of both formats."""
        return KeptFormat(super().format, self.kv)

    @property
    def label(self) -> str:
        return f"{self.inner.label} {self.kv.label}"

    @property
    def needs_calibration(self) -> bool:
        return super().needs_calibration or self.kv.static or self.kv.fires

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        if (self.kv.static or self.kv.fires) and calibration is None:
            raise NotApplicable(f"{self.kv.label} needs calibration text; {PASS_CALIBRATION}")
        require_usable_weights(model)
        for _, width in head_shapes(model).values():
            self.kv.keys.require_width(width)
            self.kv.values.require_width(width)
            self.kv.queries.require_width(width)
        if self.kv.queries.rounds:
            require_reached(model, self.kv.label)
        self.check_running(model, calibration)
        report = self.inner.compress(model, calibration, context)
        for name, (heads, width) in head_shapes(model).items():  # there may be fewer heads now
            edit(model, RoundKeyValues(name, heads, width, self.kv.as_json()))
        clock = Clock()
        if self.kv.static and calibration is not None:
            settle(model, calibration, context, clock)
        if self.kv.fires and calibration is not None:
            find_salient(model, self.kv, calibration, context, clock)
        return replace(
            report, seconds_statistics=report.seconds_statistics + clock.seconds, method=self.label
        )


@torch.no_grad()
def settle(model: nn.Module, calibration: Calibration, context: Context, clock: Clock) -> None:
    """Set the static scales of a model's keys and values from text, one block on the device at a time.

    Args:
        clock: the time of running the model is added to it.

    Raises:
        ValueError: keys or values are not finite; the message names the attention module.
    """
    stores = static_stores(model)
    _watch(model, stores.values(), calibration, context, clock)
    for name, store in stores.items():
        try:
            store.settle()
        except ValueError as error:
            raise ValueError(f"{name}: {error} on the calibration text") from error
    searched = [store for store in stores.values() if store.begin_search()]
    if not searched:
        return
    for block in walk(model, calibration.tokens, context, clock=clock):
        inside = [part for part in block.module.modules() if part in searched]
        with watching(searched), _attention_seen(inside):
            block.advance()
    for store in searched:
        store.end_search()


@contextmanager
def _attention_seen(stores: Sequence[nn.Module]) -> Iterator[None]:
    """Let the stores of a block that search by attention see it within the context.

    Raises:
        NotApplicable: there was none to see.
    """
    with ExitStack() as stack:
        modes = [
            stack.enter_context(SearchedKeys(store))
            for store in stores
            if isinstance(store, KeyValueStore) and store.searches_attention
        ]
        yield
    if not all(mode.seen for mode in modes):
        raise NotApplicable(
            "kv.search_attention=true is not possible with this model's attention, which does not call"
            " torch's scaled_dot_product_attention; load it with attn_implementation='sdpa'"
        )


@torch.no_grad()
def find_salient(
    model: nn.Module, kv: KeyValueFormat, calibration: Calibration, context: Context, clock: Clock
) -> None:
    """Choose the channels of keys and values that fire for more steps, each block behind those that fire.

    Args:
        clock: the time of running the model is added to it.

    Raises:
        ValueError: attention was not seen, or its numbers are not finite; the message names the module.
    """
    names = {store: name for name, store in key_value_stores(model).items()}
    for block in walk(model, calibration.tokens, context, clock=clock):
        (store,) = (part for part in block.module.modules() if isinstance(part, KeyValueStore))
        with watching([store]), SeenAttention() as seen:
            block.pass_inputs()
        try:
            keys, values = seen.saliency(store.heads)
        except ValueError as error:
            raise ValueError(f"{names[store]}: {error} on the calibration text") from error
        store.choose(largest(keys, kv.keys.share), largest(values, kv.values.share))


def _watch(
    model: nn.Module,
    stores: Collection[KeyValueStore],
    calibration: Calibration,
    context: Context,
    clock: Clock,
) -> None:
    """Let stores see the text once, unrounded."""
    for block in walk(model, calibration.tokens, context, clock=clock):
        with watching(stores):
            block.advance()  # also the last, whose outputs no block needs
