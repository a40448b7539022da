"""Attention to some blocks of keys of each query, exact, and never of all pairs of tokens.

A mask (…, T, K) says which blocks of keys (`algorithms/key_blocks.py`) a query attends to; the softmax is
over their keys alone. A query of which no key is chosen gets 0.

The definition gathers a row of keys and values for each chosen pair, a bounded number at a time. The fast
versions read keys where they are. Time and memory of all are proportional to the pairs. No gradient flows
through any: training stretches the blocks to a dense mask (`stretched`).
"""

import torch
from torch import Tensor

from sinq.algorithms.key_blocks import block_sizes, causal_lengths, pairs
from sinq.kernels.dispatch import fast

PAIRS_AT_ONCE = 1 << 16
"""Pairs of query and key whose rows are gathered at once, on average."""


@fast(
    cpu="sinq.kernels.cpu.block_attention:attend_blocks",
    triton="sinq.kernels.triton.block_attention:attend_blocks",
)
@torch.no_grad()
def attend_blocks(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Return attention to the keys of chosen blocks, (batch, heads, T, width), in the dtype of `query`.

    Args:
        query: (batch, heads, T, width).
        key, value: (batch, kv heads, T, width); heads that share one are next to each other.
        kept: chosen blocks of each query, bool (batch, heads, T, K).
        scale: factor of the products of queries and keys.
    """
    batch, heads, _, width = query.shape
    shared = heads // key.shape[1]
    flat = [states.float().flatten(0, 1) for states in (query, key, value)]
    mask = kept.flatten(0, 1)
    out = torch.empty_like(flat[0])
    for rows in _row_ranges(mask):
        row, column = pairs(mask, rows)
        sequence, offset = row // len(rows), row % len(rows)
        source = sequence // shared
        scores = (flat[0][sequence, rows.start + offset] * flat[1][source, column]).sum(-1) * scale
        probabilities = segment_softmax(scores, row, batch * heads * len(rows))
        part = out.new_zeros(batch * heads * len(rows), width)
        part.index_add_(0, row, probabilities[:, None] * flat[2][source, column])
        out[:, rows.start : rows.stop] = part.unflatten(0, (batch * heads, len(rows)))
    return out.unflatten(0, (batch, heads)).to(query.dtype)


def segment_softmax(scores: Tensor, segment: Tensor, count: int) -> Tensor:
    """Return the softmax of scores (pairs,) within each of `count` segments; `segment` is that of a score."""
    highest = scores.new_full((count,), -torch.inf).scatter_reduce(0, segment, scores, "amax")
    weights = (scores - highest[segment]).exp()
    return weights / scores.new_zeros(count).index_add_(0, segment, weights)[segment]


def _row_ranges(kept: Tensor) -> list[range]:
    """Return ranges of queries with about `PAIRS_AT_ONCE` pairs each, of chosen blocks (sequences, T, K)."""
    tokens, count = kept.shape[-2:]
    sizes = block_sizes(causal_lengths(tokens, kept.device), count)
    total = max(1, int((kept.sum(0) * sizes).sum()))
    step = max(1, min(tokens, tokens * PAIRS_AT_ONCE // total))
    return [range(start, min(tokens, start + step)) for start in range(0, tokens, step)]
