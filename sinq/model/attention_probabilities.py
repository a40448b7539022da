"""Attention probabilities of a model, seen while it runs, whatever way it computes attention.

Fast attention never has its probabilities in memory. Within `Probabilities()` it is computed step by step
instead, so that they can be seen and trained on:

    with Probabilities() as attention:
        block(states)
    attention.seen              # one tensor (batch, queries, keys) for each attention, the mean of its heads

`Probabilities(summary)` notes another function of the probabilities (batch, heads, queries, keys) of each
attention, so that what is large need not be kept. Seen are torch's `scaled_dot_product_attention`, and any
softmax over four dimensions (transformers' "eager"). Attention of another form asks `watched()`, and then
computes by its definition.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

SOFTMAX = (torch.nn.functional.softmax, torch.softmax, Tensor.softmax)


def watched() -> bool:
    """Return whether probabilities are noted at present."""
    return any(isinstance(mode, Probabilities) for mode in _get_current_function_mode_stack())


def mean_of_heads(probabilities: Tensor) -> Tensor:
    """Return (batch, queries, keys) of (batch, heads, queries, keys)."""
    return probabilities.mean(1)


class Probabilities(TorchFunctionMode):
    """A context in which attention probabilities are noted; gradients reach what they were made of.

    Args:
        summary: what is noted of the probabilities (batch, heads, queries, keys) of one attention.
    """

    def __init__(self, summary: Callable[[Tensor], Tensor] = mean_of_heads) -> None:
        super().__init__()
        self.summary = summary
        self.seen: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            probabilities, values = attended(*args, **given)
            self.seen.append(self.summary(probabilities))
            return probabilities @ values
        result = func(*args, **given)
        if func in SOFTMAX and result.ndim == 4:
            self.seen.append(self.summary(result))
        return result


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return probabilities (batch, heads, queries, keys), and the values of each head.

    The arguments are those of `scaled_dot_product_attention`. There is no dropout.
    """
    if enable_gqa:
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if attn_mask is not None:
        is_bool = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
    return scores.softmax(-1), value
