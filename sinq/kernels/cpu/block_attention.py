"""Attention to blocks of keys on a processor; see `sinq/kernels/block_attention.py`.

A thread takes some queries of one head. Scores of a query's keys go to a buffer as long as the text, then
their softmax weighs the values. Keys and values of a block lie side by side, so nothing is copied.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.kernels.cpu.threads import array, torch_threads

FAST = {"reassoc", "contract", "nsz"}
QUERIES = 64
"""Queries of a task, which share a buffer."""


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float) -> Tensor:
    """See `sinq.kernels.block_attention.attend_blocks`."""
    out = np.empty(query.shape, np.float32)
    flags = kept.contiguous().view(torch.uint8).numpy()
    with torch_threads():
        _attend(array(query), array(key), array(value), flags, np.float32(scale), out)
    return torch.from_numpy(out).to(query.dtype)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _attend(query, key, value, kept, scale, out):  # type: ignore[no-untyped-def]
    batch, heads, tokens, _ = query.shape
    shared = heads // key.shape[1]
    parts = -(-tokens // QUERIES)
    for task in prange(batch * heads * parts):
        sequence, part = task // parts, task % parts
        b, h = sequence // heads, sequence % heads
        scores = np.empty(tokens, np.float32)
        for t in range(part * QUERIES, min(tokens, (part + 1) * QUERIES)):
            _attend_one(
                query[b, h, t], key[b, h // shared], value[b, h // shared], kept[b, h, t], t + 1, scale,
                scores, out[b, h, t],
            )  # fmt: skip


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _attend_one(query, key, value, kept, length, scale, scores, out):  # type: ignore[no-untyped-def]
    """Write the output of a query (width,) that sees `length` keys; `scores` is a buffer."""
    blocks = len(kept)
    count, highest = 0, np.float32(-np.inf)
    for block in range(blocks):
        if kept[block]:
            start, end = _start(block, length, blocks), _start(block + 1, length, blocks)
            for j in range(start, end):
                score = np.float32(0)
                for c in range(len(query)):
                    score += query[c] * key[j, c]
                scores[count] = score * scale
                highest = max(highest, scores[count])
                count += 1
    out[:] = 0
    total, index = np.float32(0), 0
    for block in range(blocks):
        if kept[block]:
            start, end = _start(block, length, blocks), _start(block + 1, length, blocks)
            for j in range(start, end):
                weight = np.exp(scores[index] - highest)
                total += weight
                index += 1
                for c in range(len(out)):
                    out[c] += weight * value[j, c]
    if count:
        for c in range(len(out)):
            out[c] /= total


@njit(cache=True)
def _start(block, length, blocks):  # type: ignore[no-untyped-def]
    """Return the first key of a block."""
    return (2 * length * block + blocks) // (2 * blocks)
