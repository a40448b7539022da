"""Blocks of keys: the visible keys of a query divided into a constant number of blocks, as SEA does.

The first L = t + 1 keys of query t are divided into K blocks as evenly as whole keys allow:

    block b of a query of L keys = keys ⌊b·L/K + 1/2⌋ … ⌊(b + 1)·L/K + 1/2⌋ − 1

With L < K some blocks are empty and the others have one key (arXiv 2310.01777 stretches its mask so).
"""

import torch
from torch import Tensor


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
