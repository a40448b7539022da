"""Attention to some blocks of keys of each query, exact, and never of all pairs of tokens.

The visible keys of a query, the first L = t + 1, are divided into a constant number of blocks K as evenly as
whole keys allow. A mask (…, T, K) says which blocks a query attends to; the softmax is over their keys alone:

    block b of a query of L keys = keys ⌊b·L/K + 1/2⌋ … ⌊(b + 1)·L/K + 1/2⌋ − 1

With L < K some blocks are empty and the others have one key (SEA, arXiv 2310.01777, stretches its estimated
mask so). A query of which no key is chosen gets 0.

The definition gathers a row of keys and values for each chosen pair, a bounded number at a time. The fast
versions read keys where they are. Time and memory of all are proportional to the pairs. No gradient flows
through any: training stretches the blocks to a dense mask (`stretched`).
"""

import torch
from torch import Tensor

from sinq.kernels.dispatch import fast

PAIRS_AT_ONCE = 1 << 16
"""Pairs of query and key whose rows are gathered at once, on average."""


def block_starts(lengths: Tensor, blocks: int) -> Tensor:
    """Return the first key of each block, and the end of the last, int64 (rows, blocks + 1).

    Args:
        lengths: visible keys of each row, int64 (rows,).
    """
    edges = torch.arange(blocks + 1, device=lengths.device)
    return (2 * lengths[:, None] * edges + blocks) // (2 * blocks)


def block_sizes(lengths: Tensor, blocks: int) -> Tensor:
    """Return the keys in each block, int64 (rows, blocks)."""
    return block_starts(lengths, blocks).diff(dim=1)


def causal_lengths(tokens: int, device: torch.device) -> Tensor:
    """Return the visible keys of each query, 1 … tokens, int64."""
    return torch.arange(1, tokens + 1, device=device)


def block_index(tokens: int, blocks: int, device: torch.device) -> Tensor:
    """Return the block of each key for each query, int64 (tokens, tokens); later keys have any."""
    lengths = causal_lengths(tokens, device)
    middle = 2 * lengths - 1  # twice a key and a half
    return ((middle * blocks - 1) // (2 * lengths[:, None])).clamp(0, blocks - 1)


def stretched(blocks: Tensor, index: Tensor) -> Tensor:
    """Return values of blocks (…, T, K) at the keys of each block, (…, T, T), by `block_index`."""
    return blocks.gather(-1, index.expand(*blocks.shape[:-1], index.shape[-1]))


def causal(tokens: int, device: torch.device) -> Tensor:
    """Return which keys a query sees, bool (tokens, tokens)."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def pairs(kept: Tensor, rows: range) -> tuple[Tensor, Tensor]:
    """Return row and key of each chosen pair, int64 (pairs,) both, in order of rows.

    Args:
        kept: chosen blocks, bool (sequences, T, K).
        rows: the queries to take; rows are counted as sequence · len(rows) + query − rows.start.
    """
    lengths = torch.arange(rows.start + 1, rows.stop + 1, device=kept.device)
    starts = block_starts(lengths, kept.shape[-1])
    sequence, query, block = kept[:, rows.start : rows.stop].nonzero(as_tuple=True)
    first, size = starts[query, block], starts[query, block + 1] - starts[query, block]
    position = torch.arange(int(size.sum()), device=kept.device)
    before = (size.cumsum(0) - size).repeat_interleave(size)
    row = (sequence * len(rows) + query).repeat_interleave(size)
    return row, first.repeat_interleave(size) + position - before


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
