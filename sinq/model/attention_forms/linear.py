"""Causal linear attention: softmax replaced by a product of positive features, read in one direction.

    y_t = φ(q_t) · S_t / φ(q_t) · z_t,    S_t = Σ_{j≤t} φ(k_j) v_jᵀ,    z_t = Σ_{j≤t} φ(k_j)

with the generalized kernel of Performers (arXiv 2009.14794), φ(x) = ReLU(Ω x) + ε, and rows of Ω that are
orthogonal within blocks of the width. Sums are carried from chunk to chunk of tokens: memory and time are
linear in the length. Everything is float32.
"""

import math

import torch
from torch import Tensor

from sinq.model.attention_forms.form import AttentionForm, repeated

CHUNK = 128
"""Tokens between two states of the sums."""
FLOOR = 1e-3
"""ε, which keeps every feature above 0."""


def feature_count(width: int, fraction: float) -> int:
    """Return m = ⌊d ln d / fraction⌋, at least 1, for heads of width d."""
    return max(1, int(width * math.log(width) / fraction))


def orthogonal_features(count: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Return Ω (count, width): rows as long as normal vectors are, orthogonal in each block of `width`."""
    blocks = [
        torch.linalg.qr(torch.randn(width, width, generator=generator))[0].T
        for _ in range(math.ceil(count / width))
    ]
    lengths = torch.randn(count, width, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks)[:count] * lengths


def features(x: Tensor, omega: Tensor, scale: float) -> Tensor:
    """Return φ(x √scale), (..., features), so that products of features have the scale of attention's."""
    return (x.float() * scale**0.5 @ omega.float().T).relu() + FLOOR


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return causal linear attention (..., tokens, n).

    Args:
        query, key: features (..., tokens, m), above 0.
        value: (..., tokens, n).
    """
    ones = value.new_ones(*value.shape[:-1], 1)
    extended = torch.cat([value, ones], -1)  # the sum of weights is one more column
    state = value.new_zeros(*value.shape[:-2], key.shape[-1], extended.shape[-1])
    parts = []
    for q, k, v in zip(query.split(CHUNK, -2), key.split(CHUNK, -2), extended.split(CHUNK, -2), strict=True):
        parts.append((q @ k.mT).tril() @ v + q @ state)
        state = state + k.mT @ v
    sums = torch.cat(parts, -2)
    return sums[..., :-1] / sums[..., -1:]


def running_mean(value: Tensor) -> Tensor:
    """Return the mean of the values up to each token, (..., tokens, width), float32."""
    counts = torch.arange(1, value.shape[-2] + 1, device=value.device)
    return value.float().cumsum(-2) / counts[:, None]


class LinearAttention(AttentionForm):
    """Linear attention in place of softmax attention, without anything to learn."""

    omega: Tensor

    def __init__(self, width: int, fraction: float) -> None:
        super().__init__()
        self.register_buffer("omega", torch.zeros(feature_count(width, fraction), width))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads = query.shape[1]
        left, right = (features(states, self.omega, scale) for states in (query, repeated(key, heads)))
        return linear_attention(left, right, repeated(value, heads).float()).to(query.dtype)
