"""Edits of keys and values: rounding, a prefix before every text, and the finding of static scales."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinq.common.reading import typed
from sinq.formats.key_values import KeyValueFormat
from sinq.model.attention import position_modules
from sinq.model.edits import Edit
from sinq.model.key_values import STORE, KeyValueStore, enter_store
from sinq.model.rounded_queries import round_queries


@dataclass(frozen=True)
class RoundKeyValues(Edit):
    """Rounding of the keys and values that an attention module keeps."""

    name: ClassVar[str] = "round_key_values"

    attention: str
    """Name of the module."""
    heads: int
    width: int
    format: Mapping[str, Any]
    """The format, as `KeyValueFormat.as_json` gives it."""

    def apply(self, model: nn.Module) -> None:
        format = KeyValueFormat.from_json(typed(self.format, Mapping, "format"))  # type: ignore[type-abstract]
        for states in (format.keys, format.values, format.queries):
            states.require_width(self.width)
        _store(model, self.attention, self.heads, self.width).round_by(format)
        if format.queries.rounds:
            round_queries(model.get_submodule(self.attention))


@dataclass(frozen=True)
class PrefixKeyValues(Edit):
    """Keys and values of `tokens` tokens before every text, in an attention module."""

    name: ClassVar[str] = "prefix_key_values"

    attention: str
    """Name of the module."""
    heads: int
    width: int
    tokens: int

    def apply(self, model: nn.Module) -> None:
        store = _store(model, self.attention, self.heads, self.width)
        parameter = next(model.parameters())
        shape = (self.heads, typed(self.tokens, int, "tokens"), self.width)
        empty = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        store.begin_with(empty, empty.clone())


@dataclass(frozen=True)
class ShiftPositions(Edit):
    """Positions of every text that begin at `by`, behind a prefix."""

    name: ClassVar[str] = "shift_positions"

    by: int

    def apply(self, model: nn.Module) -> None:
        for module in position_modules(model):
            module.register_forward_pre_hook(Shift(typed(self.by, int, "by")), with_kwargs=True)


@dataclass(frozen=True)
class Shift:
    """A hook that adds `by` to the positions that a module is called with."""

    by: int

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with shifted positions.

        Raises:
            ValueError: a table of positions is too short.
        """
        if kwargs.get("position_ids") is not None:
            kwargs = kwargs | {"position_ids": self._shifted(kwargs["position_ids"], module)}
        else:
            args = (*args[:-1], self._shifted(args[-1], module))
        return args, kwargs

    def _shifted(self, positions: Tensor, module: nn.Module) -> Tensor:
        shifted = positions + self.by
        if isinstance(module, nn.Embedding):
            table = module.num_embeddings - getattr(module, "offset", 0)
            if int(shifted.max()) >= table:
                raise ValueError(
                    f"a text of {int(positions.max()) + 1} tokens behind a prefix of {self.by} has more"
                    f" positions than the {table} that the model has learned; use shorter windows"
                )
        return shifted


def key_value_stores(model: nn.Module) -> dict[str, KeyValueStore]:
    """Return the key-value stores of a model by the name of their attention module."""
    ending = f".{STORE}"
    return {
        name.removesuffix(ending): part
        for name, part in model.named_modules()
        if isinstance(part, KeyValueStore)
    }


def static_stores(model: nn.Module) -> dict[str, KeyValueStore]:
    """Return the key-value stores with static scales by the name of their attention module."""
    return {name: store for name, store in key_value_stores(model).items() if store.format.static}


@contextmanager
def watching(stores: Collection[KeyValueStore]) -> Iterator[None]:
    """Let stores round nothing and note what they see within the context."""
    for store in stores:
        store.watches = True
    try:
        yield
    finally:
        for store in stores:
            store.watches = False


def _store(model: nn.Module, name: Any, heads: int, width: int) -> KeyValueStore:
    """Return the store of an attention module; install one if it has none.

    Raises:
        ValueError: the model has no module of this name.
    """
    attention = dict(model.named_modules()).get(typed(name, str, "attention"))
    if attention is None:
        raise ValueError(f"{type(model).__name__} has no attention module {name}")
    if not hasattr(attention, STORE):
        store = KeyValueStore(typed(heads, int, "heads"), typed(width, int, "width"))
        attention.add_module(STORE, store.to(next(model.parameters()).device))
        attention.register_forward_pre_hook(enter_store, with_kwargs=True)
    found: KeyValueStore = getattr(attention, STORE)
    return found
