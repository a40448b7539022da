"""Sums over what attention is given and returns, while a model runs: saliencies of keys and values.

    with SeenAttention() as seen:
        block(states)
    seen.keys, seen.values          # saliency of each channel, (heads · width,), for the heads of keys

Seen is torch's `scaled_dot_product_attention`. Keys and queries are those after positions are embedded.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sinq.algorithms.saliency import first_order


class SeenAttention(TorchFunctionMode):
    """A context in which the saliencies of keys and values are added up (`algorithms/saliency.py`)."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: tuple[Tensor, Tensor] | None = None
        """Of keys and of values, float64 (query heads, width); None before the first attention."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            self._add(args[0].double(), args[1].double(), result.double())
        return result

    def _add(self, query: Tensor, key: Tensor, output: Tensor) -> None:
        """Add a call; query and output are (batch, query heads, tokens, width), keys may have fewer heads."""
        key = key[:, :, -query.shape[2] :].repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        found = first_order(query, key.mT @ key).sum(0), output.square().sum((0, 2))
        before = self.sums or (torch.zeros_like(found[0]), torch.zeros_like(found[1]))
        self.sums = before[0] + found[0], before[1] + found[1]

    def saliency(self, heads: int) -> tuple[Tensor, Tensor]:
        """Return the saliencies of keys and values, float64 (heads · width,).

        Args:
            heads: heads of keys; queries that share one add up.

        Raises:
            ValueError: no attention was seen, or numbers that are not finite.
        """
        if self.sums is None:
            raise ValueError(
                "attention was not seen: torch's scaled_dot_product_attention was not called; load the model"
                " with attn_implementation='sdpa'"
            )
        keys, values = (sums.unflatten(0, (heads, -1)).sum(1).flatten() for sums in self.sums)
        if not bool((keys.isfinite() & values.isfinite()).all()):
            raise ValueError("queries, keys or values are not finite")
        return keys, values
