"""Selection of keys: how many blocks a query keeps, and which.

A query of L visible keys in K blocks keeps k̂ of them over all H heads together, so that a head has k keys on
average at every length:

    k̂ = H · k · min(K, L) / L,  rounded; all where L ≤ k

A head may keep more than another, and none at all. Blocks without a key (L < K) are never kept and have no
probability; the published code counts them, and may keep some of them instead of keys.
"""

import torch
from torch import Tensor

from sinq.algorithms.key_blocks import block_sizes

QUERIES_AT_ONCE = 1024
"""Queries whose estimates are sorted at once."""


def kept_counts(lengths: Tensor, heads: int, keys: int, blocks: int) -> Tensor:
    """Return k̂ of each query, int64 (rows,), for its visible keys (rows,)."""
    filled = lengths.clamp(max=blocks)
    counts = (heads * keys * filled / lengths).round().long()
    return torch.minimum(counts.clamp(min=1), heads * filled)


@torch.no_grad()
def kept_blocks(estimate: Tensor, keys: int) -> Tensor:
    """Return the blocks that each query keeps, bool (batch, heads, T, K), by the softmax of an estimate.

    Args:
        estimate: logits (batch, heads, T, K).
        keys: mean number of keys of a head, k.
    """
    starts = range(0, estimate.shape[2], QUERIES_AT_ONCE)
    parts = [_kept(estimate[:, :, start : start + QUERIES_AT_ONCE], start, keys) for start in starts]
    return torch.cat(parts, 2)


def _kept(estimate: Tensor, first: int, keys: int) -> Tensor:
    """Return the kept blocks of some queries, of which `first` is the number of the first."""
    _, heads, rows, blocks = estimate.shape
    lengths = torch.arange(first + 1, first + rows + 1, device=estimate.device)
    filled = block_sizes(lengths, blocks) > 0
    probability = _softmax(estimate.float().masked_fill(~filled, -torch.inf)).masked_fill(~filled, -1.0)
    together = probability.transpose(1, 2).flatten(2)  # (batch, rows, heads · K)
    order = together.argsort(dim=-1, descending=True, stable=True)
    chosen = torch.arange(heads * blocks, device=estimate.device)
    chosen = chosen < kept_counts(lengths, heads, keys, blocks)[:, None]
    kept = torch.zeros_like(together, dtype=torch.bool).scatter(-1, order, chosen.expand_as(order))
    return kept.unflatten(2, (heads, blocks)).transpose(1, 2)


def _softmax(logits: Tensor) -> Tensor:
    """Return the softmax over the last dimension, (..., n), of which no form of attention is made.

    Watched probabilities (`attention_probabilities.py`) are those of attention alone.
    """
    return logits.flatten(0, -2).softmax(-1).view_as(logits)


def local_mask(tokens: int, keys: int, device: torch.device) -> Tensor:
    """Return which keys are among the last `keys` that a query sees, bool (tokens, tokens)."""
    ones = torch.ones(tokens, tokens, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - keys)


def highest_mask(scores: Tensor, keys: int) -> Tensor:
    """Return which `keys` keys of each query have the highest scores, bool like `scores` (..., tokens).

    Keys of −∞ are never chosen.
    """
    chosen = scores.topk(min(keys, scores.shape[-1]), -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True) & (scores > -torch.inf)
