"""Keys and values of attention, rounded and prefixed: the seam between the projections and the softmax.

Every decoder of transformers hands new keys (after rotary embedding) and values to `cache.update`, and goes
on with what that returns. A hook before the attention module gives it a cache whose layer is a
`KeyValueLayer` (`key_value_layer.py`): in place of the layer of the cache that was passed, or for this one
call. So a text in one pass, `generate`, batches and beams meet the same numbers, and no attention code is
replaced.

The edits that install it are in `key_value_edits.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sinq.formats.checks import require_finite, require_names, require_tensor
from sinq.formats.key_values import KeyValueFormat, StateFormat, StoredStates
from sinq.formats.packing import pack, unpack
from sinq.formats.rotation import Rotation
from sinq.kernels.rotation import rotated
from sinq.model.attention import CACHE_NAMES, cache_argument
from sinq.model.key_value_layer import KeyValueLayer, Pair
from sinq.model.stored import StoredNumbers

SHARES = tuple(1 - step / 20 for step in range(10))
"""Shares of a head's range that are tried: 1, 0.95 … 0.55."""
STORE = "key_value_store"
"""Name of the module that an attention module gets."""


class KeyValueStore(StoredNumbers):
    """The way an attention module keeps keys and values, and what it stores for every text.

    Buffers: `prefix_keys`, `prefix_values` (heads, tokens, width) of a prefix, in the dtype of the model;
    `key_scale`, `value_scale`, float32 (heads,), and `key_zero`, `value_zero` of static formats, 1 and 0
    until `settle` sets them from what was seen; `key_salient`, `value_salient`, uint8, a bit for each channel
    that fires for more than one step.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.prefix_length = 0
        self._format = KeyValueFormat()
        self.watches = False
        """True while the module rounds nothing and notes extremes, then errors of narrower scales."""
        self._seen: list[tuple[Tensor, Tensor] | None] = [None, None]
        self._errors: dict[str, Tensor] = {}

    @property
    def format(self) -> KeyValueFormat:
        """The present format: nothing is rounded while extremes are noted."""
        return KeyValueFormat() if self.watches else self._format

    @property
    def searches_attention(self) -> bool:
        """True if scales of keys are searched by what attention makes of them."""
        return self._format.search_attention

    def round_by(self, format: KeyValueFormat) -> None:
        """Round keys and values from now on; static scales are not known yet."""
        self._format = format
        for name, states in self._static():
            self.register_buffer(f"{name}_scale", torch.ones(self.heads))
            if not states.symmetric:
                self.register_buffer(f"{name}_zero", torch.zeros(self.heads))
        for name, _ in self._firing():
            empty = torch.zeros(self.heads * self.width // 8, dtype=torch.uint8)
            self.register_buffer(f"{name}_salient", empty)

    def begin_with(self, keys: Tensor, values: Tensor) -> None:
        """Begin every text with keys and values (heads, tokens, width)."""
        self.prefix_length = keys.shape[1]
        self.register_buffer("prefix_keys", keys)
        self.register_buffer("prefix_values", values)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        require_names("key_value_store", dict(tensors), tuple(self._buffers))
        for name, tensor in tensors.items():
            require_tensor(name, tensor, *self._stored_as(name, tensor))
            if name.endswith("_scale") and not bool((tensor > 0).all()):
                raise ValueError(f"{name} has {tensor.min().item():g}; scales must be above 0")
        require_finite(dict(tensors))
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def _stored_as(self, name: str, tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return the type and shape of a buffer."""
        if name.startswith("prefix"):
            return tensor.dtype, (self.heads, self.prefix_length, self.width)
        if name.endswith("_salient"):
            return torch.uint8, (self.heads * self.width // 8,)
        return torch.float32, (self.heads,)

    def choose(self, keys: Tensor, values: Tensor) -> None:
        """Set the channels that fire for more steps where the format has them, bool (heads · width,) both."""
        masks = {"key": keys, "value": values}
        found = {}
        for name, _ in self._firing():
            present = self.get_buffer(f"{name}_salient")
            found[f"{name}_salient"] = pack(masks[name].to(present.device, torch.uint8), 1)
        self.take({name: found.get(name, tensor) for name, tensor in self.named_buffers()})

    def prefix(self, like: Tensor) -> Pair:
        """Return keys and values of the prefix for a batch like `like` (batch, heads, tokens, width)."""
        keys, values = (self.get_buffer(f"prefix_{name}").to(like)[None] for name in ("keys", "values"))
        batch = like.shape[0]
        return keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)

    def encode(self, keys: Tensor, values: Tensor) -> tuple[StoredStates, StoredStates]:
        """Round keys and values (batch, heads, tokens, width)."""
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise ValueError("gradients do not pass through rounded keys and values; use torch.no_grad()")
        keys = rotated(keys, self._rotation(keys)) if self.format.rotate else keys
        return (
            StoredStates.of(self.format.keys, keys, self._static_numbers("key"), self.salient("key")),
            StoredStates.of(self.format.values, values, self._static_numbers("value"), self.salient("value")),
        )

    def rounded_queries(self, queries: Tensor) -> Tensor:
        """Return queries (batch, heads, tokens, width) after rounding, in their dtype.

        Raises:
            ValueError: a gradient is asked for.
        """
        if not self.format.queries.rounds:
            return queries
        if torch.is_grad_enabled() and queries.requires_grad:
            raise ValueError("gradients do not pass through rounded queries; use torch.no_grad()")
        turned = rotated(queries, self._rotation(queries)) if self.format.rotate else queries
        found = StoredStates.of(self.format.queries, turned).read(torch.float32)
        return (rotated(found, self._rotation(found), back=True) if self.format.rotate else found).to(queries)

    def decode(self, stored: tuple[StoredStates, StoredStates], dtype: torch.dtype) -> Pair:
        """Return the numbers that are stored, (batch, heads, tokens, width) both."""
        keys = stored[0].read(torch.float32, self._static_numbers("key"), self.salient("key"))
        keys = rotated(keys, self._rotation(keys), back=True) if self.format.rotate else keys
        values = stored[1].read(dtype, self._static_numbers("value"), self.salient("value"))
        return keys.to(dtype), values

    def see(self, keys: Tensor, values: Tensor) -> None:
        """While the module watches, note the extremes of each head, of (batch, heads, tokens, width) both."""
        if not self.watches:
            return
        keys = rotated(keys, self._rotation(keys)) if self._format.rotate else keys
        if self._errors:
            by_states = {"value": values} if self._format.search_attention else {"key": keys, "value": values}
            self._add_errors(by_states)
            return
        for index, states in enumerate((keys, values)):
            low, high = states.detach().float().transpose(0, 1).flatten(1).aminmax(dim=1)
            if (seen := self._seen[index]) is not None:
                low, high = torch.minimum(low, seen[0]), torch.maximum(high, seen[1])
            self._seen[index] = low.clamp_max(0), high.clamp_min(0)

    def settle(self) -> None:
        """Set static scales from the extremes that were seen.

        Raises:
            ValueError: nothing was seen, or something that is not finite.
        """
        found: dict[str, Tensor] = {}
        for index, (name, states) in enumerate((("key", self._format.keys), ("value", self._format.values))):
            if not states.static:
                continue
            if (seen := self._seen[index]) is None:
                raise ValueError("no keys and values were seen")
            if not all(bool(extreme.isfinite().all()) for extreme in seen):
                raise ValueError(f"{name}s are not finite")
            scale, zero = states.scales(*seen)
            found |= {f"{name}_scale": scale} | ({} if states.symmetric else {f"{name}_zero": zero})
        self.take({name: found.get(name, tensor) for name, tensor in self.named_buffers()})
        self._seen = [None, None]

    def begin_search(self) -> bool:
        """Note errors of narrower scales from now on, while the module watches; False if none is sought."""
        self._errors = {name: torch.zeros(len(SHARES), self.heads) for name, s in self._static() if s.search}
        return bool(self._errors)

    def end_search(self) -> None:
        """Narrow each head's scale to the share of the least error."""
        shares = torch.tensor(SHARES)
        for name, errors in self._errors.items():
            scale = self.get_buffer(f"{name}_scale")
            scale.mul_(shares[errors.argmin(0)].to(scale.device))
        self._errors = {}

    def _add_errors(self, seen: Mapping[str, Tensor]) -> None:
        formats = dict(self._static())
        for name in self._errors.keys() & seen.keys():
            for index, share in enumerate(SHARES):
                off = self._narrowed(name, formats[name], seen[name], share) - seen[name].float()
                self.add_error(name, index, off.square().sum((0, 2, 3)))

    def add_error(self, name: str, index: int, errors: Tensor) -> None:
        """Add errors of "key" or "value" at one of `SHARES`, (heads,)."""
        self._errors[name][index] += errors.cpu()

    def rounded_keys(self, keys: Tensor, share: float) -> Tensor:
        """Return keys (batch, heads, tokens, width), float32, rounded with a share of the static scales."""
        if not self._format.rotate:
            return self._narrowed("key", self._format.keys, keys, share)
        turned = rotated(keys, self._rotation(keys))
        found = self._narrowed("key", self._format.keys, turned, share)
        return rotated(found, self._rotation(keys), back=True)

    def _narrowed(self, name: str, format: StateFormat, states: Tensor, share: float) -> Tensor:
        scale, zero = self._static_numbers(name) or (torch.ones(()), torch.zeros(()))
        numbers = scale * share, zero
        return StoredStates.of(format, states, numbers).read(torch.float32, numbers)

    def layer_in(self, cache: Any, index: int) -> KeyValueLayer:
        """Return this module's layer of a cache of transformers; put one there, or make one if it is None.

        Raises:
            ValueError: the cache is of another kind than a growing one, or has tokens that were not rounded.
        """
        if cache is None:
            return KeyValueLayer(self)
        layers = getattr(cache, "layers", None)
        if layers is None:
            raise ValueError(
                f"a {type(cache).__name__} cannot keep rounded keys and values; use DynamicCache"
            )
        while len(layers) <= index:
            layers.append(cache.layer_class_to_replicate())
        if not isinstance(layers[index], KeyValueLayer):
            if type(layers[index]).__name__ != "DynamicLayer" or layers[index].get_seq_length():
                raise ValueError(
                    f"layer {index} of the cache is a {type(layers[index]).__name__} of"
                    f" {layers[index].get_seq_length()} tokens; rounded keys and values need a DynamicCache"
                    " that is empty at first"
                )
            layers[index] = KeyValueLayer(self)
        return layers[index]

    def salient(self, name: str) -> Tensor | None:
        """Return the numbers of the channels of "key" or "value" that fire for more steps, int64."""
        if (packed := self._buffers.get(f"{name}_salient")) is None:
            return None
        return unpack(packed, 1, (self.heads * self.width,)).nonzero().squeeze(1)

    def _firing(self) -> Iterator[tuple[str, StateFormat]]:
        pairs = (("key", self._format.keys), ("value", self._format.values))
        return (pair for pair in pairs if pair[1].fires)

    def _static(self) -> Iterator[tuple[str, StateFormat]]:
        pairs = (("key", self._format.keys), ("value", self._format.values))
        return (pair for pair in pairs if pair[1].static)

    def _static_numbers(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return scale and zero (heads, 1, 1, 1) of a static format."""
        if (scale := self._buffers.get(f"{name}_scale")) is None:
            return None
        zero = self._buffers.get(f"{name}_zero")
        zero = torch.zeros_like(scale) if zero is None else zero
        return scale.view(-1, 1, 1, 1), zero.view(-1, 1, 1, 1)

    def _rotation(self, keys: Tensor) -> Rotation:
        return Rotation.plain(self.width, keys.device)

    def extra_repr(self) -> str:
        prefix = f", prefix of {self.prefix_length}" if self.prefix_length else ""
        return (self._format.label if self._format.rounds else "dense") + prefix


class OneCall:
    """A cache of one layer for one call, where no cache was passed."""

    def __init__(self, layer: KeyValueLayer) -> None:
        self._layer = layer

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Pair:
        """Return keys and values for attention."""
        return self._layer.update(keys, values)


def enter_store(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let an attention module keep keys and values in its store: a hook before its forward."""
    store: KeyValueStore = getattr(attention, STORE)
    named = (name for name in CACHE_NAMES if name in kwargs)
    name = next(named, None) or str(cache_argument(type(attention)))
    cache = kwargs.get(name)
    layer = store.layer_in(cache, attention.layer_idx)
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    mask = layer.columns(states.shape[1]).mask(kwargs.get("attention_mask"), states.device)
    return args, kwargs | {"attention_mask": mask, name: OneCall(layer) if cache is None else cache}
