"""Keys and values of one sequence as attention keeps them: a layer of a cache, rounded, after a prefix.

    keys for attention:   prefix | rounded tokens | dense tokens

transformers gives every decoder a cache of layers, or none. `KeyValueStore` (`key_values.py`) puts a
`KeyValueLayer` in place of a layer, or makes one for a single pass. Rounding is done once, when tokens come
in.

With a dense window, a token in one pass is dense for the queries near it and rounded for later ones. So it
stands twice among the keys, and the mask (`Columns.mask`) shows each query the one that token by token
decoding would have. The prefix is shown to all. Lengths that transformers asks for are those of the text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from sinq.formats.key_values import KeyValueFormat, StoredStates

Pair = tuple[Tensor, Tensor]


class Store(Protocol):
    """The part of a `KeyValueStore` that a layer uses."""

    prefix_length: int

    @property
    def format(self) -> KeyValueFormat: ...

    def see(self, keys: Tensor, values: Tensor) -> None:
        """Take notice of new keys and values (batch, heads, tokens, width)."""
        ...

    def prefix(self, like: Tensor) -> Pair:
        """Return keys and values of the prefix for a batch like `like`."""
        ...

    def encode(self, keys: Tensor, values: Tensor) -> tuple[StoredStates, StoredStates]:
        """Round keys and values (batch, heads, tokens, width)."""
        ...

    def decode(self, stored: tuple[StoredStates, StoredStates], dtype: torch.dtype) -> Pair:
        """Return the numbers that are stored."""
        ...


@dataclass(frozen=True)
class Columns:
    """The keys that a call of attention sees, by position in the text."""

    format: KeyValueFormat
    prefix: int
    past: int
    """Tokens before the call."""
    queries: int
    """Tokens of the call."""

    @cached_property
    def rounded(self) -> int:
        """Number of first tokens that are rounded after the call."""
        return self.format.rounded(self.past + self.queries)

    @cached_property
    def dense(self) -> int:
        """Position of the first token that a query of the call may see dense."""
        if self.format.immediate:
            return self.past + self.queries
        return self.format.rounded(self.past + 1)

    def mask(self, given: Tensor | None, device: torch.device) -> Tensor | None:
        """Return the attention mask of these keys.

        Args:
            given: (batch or 1, heads or 1, queries, tokens), True or 0 where visible; None for causal.

        Raises:
            ValueError: the mask is of another kind.
        """
        total = self.past + self.queries
        if not self.prefix and (self.format.immediate or not self.format.rounds):
            return given  # every key stands once, at its position
        if given is None:
            if self.queries == 1:
                return None  # it sees all
            given = torch.ones(total, total, dtype=torch.bool, device=device).tril()[None, None, self.past :]
        if given.ndim != 4 or given.shape[-1] != total:
            raise ValueError(
                f"an attention mask {tuple(given.shape)} of {total} tokens has another form than"
                " (batch, heads, queries, tokens); load the model with attn_implementation='sdpa' or 'eager'"
            )
        return torch.cat(
            [
                _visible(given, self.prefix),
                _hidden(given[..., : self.rounded], ~self._seen_rounded(0, self.rounded, device)),
                _hidden(given[..., self.dense :], self._seen_rounded(self.dense, total, device)),
            ],
            dim=-1,
        )

    def _seen_rounded(self, start: int, end: int, device: torch.device) -> Tensor:
        """Return which of the tokens from `start` to `end` a query sees rounded, (queries, tokens)."""
        counts = range(self.past + 1, self.past + self.queries + 1)
        rounded = torch.tensor([self.format.rounded(count) for count in counts], device=device)
        return torch.arange(start, end, device=device) < rounded[:, None]


def _visible(mask: Tensor, count: int) -> Tensor:
    """Return `count` columns of a mask that hide nothing."""
    shape = (*mask.shape[:-1], count)
    return mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)


def _hidden(mask: Tensor, hidden: Tensor) -> Tensor:
    """Return a mask that also hides some columns from some queries."""
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


class KeyValueLayer:
    """Keys and values of the tokens of a sequence, in the interface of a layer of transformers' caches."""

    is_sliding = is_compileable = is_croppable = supports_early_init = False

    def __init__(self, store: Store) -> None:
        from transformers.cache_utils import CacheLayerMixin  # late: importing it takes seconds

        CacheLayerMixin.register(KeyValueLayer)  # its caches ask for the type
        self._store = store
        self._length = 0
        self._stored: tuple[StoredStates, StoredStates] | None = None
        self._dense: Pair | None = None

    @property
    def is_initialized(self) -> bool:
        return self._length > 0

    @property
    def rounds(self) -> bool:
        """True unless all tokens stay dense."""
        return self._store.format.rounds

    @property
    def keys(self) -> Tensor:
        """Keys of the tokens that are dense, (batch, heads, tokens, width)."""
        assert self._dense is not None
        return self._dense[0]

    @property
    def values(self) -> Tensor:
        """Values of the same tokens."""
        assert self._dense is not None
        return self._dense[1]

    def columns(self, queries: int) -> Columns:
        """Return the keys that the next call sees."""
        return Columns(self._store.format, self._store.prefix_length, self._length, queries)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Pair:
        """Keep keys and values (batch, heads, tokens, width) of new tokens; return those for attention."""
        self._store.see(keys, values)
        columns = self.columns(keys.shape[2])
        first = columns.format.rounded(self._length)  # position of the first dense token
        dense = _joined(self._dense, (keys, values))
        if new := columns.rounded - first:
            stored = self._store.encode(dense[0][:, :, :new], dense[1][:, :, :new])
            self._stored = (
                stored
                if self._stored is None
                else (self._stored[0].followed_by(stored[0]), self._stored[1].followed_by(stored[1]))
            )
        self._dense = dense[0][:, :, new:], dense[1][:, :, new:]
        self._length += keys.shape[2]
        seen = dense[0][:, :, columns.dense - first :], dense[1][:, :, columns.dense - first :]
        return self._for_attention(seen)

    def _for_attention(self, dense: Pair) -> Pair:
        parts = [] if not self._store.prefix_length else [self._store.prefix(dense[0])]
        if self._stored is not None:
            parts.append(self._store.decode(self._stored, dense[0].dtype))
        return torch.cat([keys for keys, _ in (*parts, dense)], 2), torch.cat(
            [values for _, values in (*parts, dense)], 2
        )

    def tensors(self) -> list[Tensor]:
        """Return everything that is kept for the text; the prefix is not of it."""
        stored = [tensor for states in self._stored or () for tensor in states.tensors().values()]
        return [*stored, *(self._dense or ())]

    def get_seq_length(self) -> int:
        """Return the number of tokens of the text."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return number and offset of the tokens that transformers' mask is made for."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        """Return −1: the layer grows."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self._length, self._stored, self._dense = 0, None, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select sequences of the batch, for beam search."""
        self._change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence of the batch."""
        self._change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences of the batch."""
        self._change(lambda tensor: tensor[indices])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._stored is not None:
            self._stored = self._stored[0].changed(change), self._stored[1].changed(change)
        if self._dense is not None:
            self._dense = change(self._dense[0]), change(self._dense[1])


def _joined(before: Pair | None, after: Pair) -> Pair:
    if before is None:
        return after
    return torch.cat((before[0], after[0]), 2), torch.cat((before[1], after[1]), 2)
