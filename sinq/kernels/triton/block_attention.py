"""Attention to blocks of keys on CUDA; see `sinq/kernels/block_attention.py`.

The chosen keys of all queries are listed first, one after another (compressed sparse rows). A program has one
query: it gathers some keys at a time, and carries the softmax from one set to the next with its maximum and
sum, as FlashAttention does. Not measured on a device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sinq.algorithms.key_blocks import pairs

KEYS = 64
"""Keys that are gathered at once."""


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float) -> Tensor:
    """See `sinq.kernels.block_attention.attend_blocks`."""
    batch, heads, tokens, width = query.shape
    row, column = pairs(kept.flatten(0, 1), range(tokens))
    ends = torch.bincount(row, minlength=batch * heads * tokens).cumsum(0)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    attend_listed[(batch * heads * tokens,)](
        query.contiguous(), key.contiguous(), value.contiguous(), column.to(torch.int32), ends, out,
        tokens, scale, heads // key.shape[1],
        WIDTH=width, PADDED=triton.next_power_of_2(width), KEYS=KEYS,
    )  # fmt: skip
    return out


@triton.jit
def attend_listed(  # type: ignore[no-untyped-def]
    query, key, value, columns, ends, out, tokens, scale, shared,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Write the output of one query, whose keys are `columns` up to its end and from that of the one before.

    `shared` heads read one head of keys and values. A query without keys gets 0.
    """
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(ends + row - 1, mask=row > 0, other=0), tl.load(ends + row)
    source = row // tokens // shared * tokens
    channel = tl.arange(0, PADDED)
    inside = channel < WIDTH
    q = tl.load(query + row * WIDTH + channel, mask=inside, other=0).to(tl.float32) * scale
    highest, total = float("-inf"), 0.0
    sums = tl.zeros([PADDED], tl.float32)
    for start in range(begin, end, KEYS):
        position = start + tl.arange(0, KEYS)
        listed = position < end
        column = tl.load(columns + position, mask=listed, other=0)
        offset = (source + column)[:, None] * WIDTH + channel[None, :]
        both = listed[:, None] & inside[None, :]
        scores = tl.sum(tl.load(key + offset, mask=both, other=0).to(tl.float32) * q[None, :], 1)
        scores = tl.where(listed, scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, 0))
        weights = tl.exp(scores - new)
        before = tl.exp(highest - new)
        values = tl.load(value + offset, mask=both, other=0).to(tl.float32)
        sums = sums * before + tl.sum(weights[:, None] * values, 0)
        total = total * before + tl.sum(weights, 0)
        highest = new
    result = tl.where(total > 0, sums / tl.where(total > 0, total, 1.0), 0.0)
    tl.store(out + row * WIDTH + channel, result, mask=inside)
