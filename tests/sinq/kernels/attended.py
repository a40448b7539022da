"""Arguments of attention to blocks of keys, for tests of its kernels."""

import torch
from torch import Tensor


def inputs(
    tokens: int, blocks: int, kept: float = 0.4, heads: int = 4, kv_heads: int = 2, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(batch, count, tokens, 8, generator=generator) for count in (heads, kv_heads, kv_heads)
    )
    return query, key, value, torch.rand(batch, heads, tokens, blocks, generator=generator) < kept, 0.35
