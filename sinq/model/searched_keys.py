"""Search of static scales of keys by what attention makes of them (PrefixQuant, arXiv 2410.05265).

    with SearchedKeys(store):
        block(states)           # the store notes, for each share of a scale, the error of the probabilities

A key is only ever met by queries, so an error of a key matters as far as it moves softmax(Q Kᵀ / √width).
Seen is torch's `scaled_dot_product_attention`, after positions are embedded; keys of a prefix come first and
are dense.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sinq.model.attention_probabilities import attended
from sinq.model.key_values import SHARES, KeyValueStore


class SearchedKeys(TorchFunctionMode):
    """A context in which a store adds up squared errors of attention probabilities, for each of its heads."""

    def __init__(self, store: KeyValueStore) -> None:
        super().__init__()
        self.store = store
        self.seen = False
        """True once attention was seen."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **given)
        self.seen = True
        query, key, *rest = args
        dense, _ = attended(query, key, *rest, **given)
        for index, share in enumerate(SHARES):
            probabilities, _ = attended(query, self._rounded(key, share), *rest, **given)
            self.store.add_error("key", index, _by_head(dense - probabilities, self.store.heads))
        return func(*args, **given)

    def _rounded(self, key: Tensor, share: float) -> Tensor:
        """Return keys (batch, heads, tokens, width), of which those behind the prefix are rounded.

        The heads may be repeated for the queries that share them.
        """
        count, prefix = key.shape[1] // self.store.heads, self.store.prefix_length
        text = self.store.rounded_keys(key[:, ::count, prefix:], share).to(key)
        return torch.cat([key[:, :, :prefix], text.repeat_interleave(count, 1)], dim=2)


def _by_head(errors: Tensor, heads: int) -> Tensor:
    """Return the sum of squares for each head of keys, (heads,), of errors (batch, query heads, …)."""
    return errors.float().square().sum((0, 2, 3)).reshape(heads, -1).sum(1)
