"""Forms of attention that are exact on some of the keys: estimated ones, the last ones, the truly highest.

Each has a *dense* definition, with masks of all pairs of tokens, through which gradients flow and which shows
its probabilities; and a sparse one, which runs where no gradient is needed. `EstimatedAttention` is SEA's
(arXiv 2310.01777):

    o_t = σ(g₂) σ(g₁) · softmax over kept keys (scale · q_t·k_j) v  +  (1 − σ(g₂)) · mean_{j≤t} v_j

`LocalAttention` is what needs no estimate, and `HighestAttention` what no estimate can beat by much: it looks
at all pairs to choose, in quadratic time, and is a bound and no method.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.algorithms.key_blocks import block_index, causal, stretched
from sinq.kernels.block_attention import attend_blocks
from sinq.model.attention_forms.estimator import Estimator, EstimatorShape
from sinq.model.attention_forms.form import AttentionForm, repeated
from sinq.model.attention_forms.linear import running_mean
from sinq.model.attention_forms.selection import highest_mask, kept_blocks, local_mask
from sinq.model.attention_probabilities import watched

QUERIES_AT_ONCE = 256
"""Queries whose scores are in memory at once."""


@dataclass(frozen=True)
class Attended:
    """The dense computation of a form."""

    output: Tensor
    """(batch, heads, T, width)."""
    mask: Tensor
    """Keys that are looked at, bool (batch or 1, heads or 1, T, T)."""
    estimate: Tensor | None = None
    """Logits of the estimate at each key (batch, heads, T, T); later keys have any."""


class SparseAttention(AttentionForm):
    """A form with a dense definition and a sparse computation."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if torch.is_grad_enabled() or watched():
            return self.dense(query, key, value, scale).output
        return self.sparse(query, key, value, scale)

    @abstractmethod
    def dense(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
        """Return the output with masks of all pairs; arguments are those of `forward`."""

    @abstractmethod
    def sparse(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the output, (batch, heads, T, width); arguments are those of `forward`."""


class EstimatedAttention(SparseAttention):
    """Attention to the blocks of keys that an estimator chooses, k keys for a head on average."""

    def __init__(self, shape: EstimatorShape, keys: int) -> None:
        super().__init__()
        self.keys = keys
        self.estimator = Estimator(shape)
        self.jitter = 0.0
        """Blocks by which the block of a key is moved at most, at random, in the dense definition."""

    def dense(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
        heads = query.shape[1]
        key, value = repeated(key, heads), repeated(value, heads)
        estimate, gates = self.estimator(query, key, value, scale)
        tokens, blocks = estimate.shape[-2:]
        index = jittered(block_index(tokens, blocks, query.device), blocks, self.jitter)
        mask = stretched(kept_blocks(estimate, self.keys), index) & causal(tokens, query.device)
        output = _gated(masked_attention(query, key, value, mask, scale), value, gates)
        return Attended(output, mask, stretched(estimate, index))

    def sparse(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        wide = repeated(value, query.shape[1])
        estimate, gates = self.estimator(query, repeated(key, query.shape[1]), wide, scale)
        kept = kept_blocks(estimate, self.keys)
        return _gated(attend_blocks(query, key, value, kept, scale), wide, gates)


class LocalAttention(SparseAttention):
    """Attention to the last `keys` keys."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys = keys

    def dense(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
        mask = local_mask(query.shape[2], self.keys, query.device)[None, None]
        return Attended(masked_attention(query, key, value, mask, scale), mask)

    def sparse(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        parts = []
        for rows in _ranges(query.shape[2]):
            first = max(0, rows.start + 1 - self.keys)
            seen = local_mask(rows.stop - first, self.keys, query.device)[rows.start - first :]
            states = key[:, :, first : rows.stop], value[:, :, first : rows.stop]
            parts.append(masked_attention(query[:, :, rows.start : rows.stop], *states, seen, scale))
        return torch.cat(parts, 2)


class HighestAttention(SparseAttention):
    """Attention to the `keys` keys of the highest true scores: an upper bound, in quadratic time."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys = keys

    def dense(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
        mask = self._mask(query, key, scale, range(query.shape[2]))
        return Attended(masked_attention(query, key, value, mask, scale), mask)

    def sparse(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        parts = []
        for rows in _ranges(query.shape[2]):
            mask = self._mask(query, key, scale, rows)
            parts.append(masked_attention(query[:, :, rows.start : rows.stop], key, value, mask, scale))
        return torch.cat(parts, 2)

    @torch.no_grad()
    def _mask(self, query: Tensor, key: Tensor, scale: float, rows: range) -> Tensor:
        wide = repeated(key, query.shape[1]).float()
        scores = query[:, :, rows.start : rows.stop].float() @ wide.mT * scale
        visible = causal(query.shape[2], query.device)[rows.start : rows.stop]
        return highest_mask(scores.masked_fill(~visible, -torch.inf), self.keys)


def jittered(index: Tensor, blocks: int, jitter: float) -> Tensor:
    """Return blocks of keys (T, T), each moved by the nearest whole number to one of ±jitter, at random."""
    if not jitter:
        return index
    moves = (2 * torch.rand(index.shape, device=index.device) - 1) * jitter
    return (index + moves.round().long()).clamp(0, blocks - 1)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return softmax attention (batch, heads, queries, width) to the keys of a mask (…, queries, keys).

    A query that looks at no key gets 0.
    """
    key, value = repeated(key, query.shape[1]), repeated(value, query.shape[1])
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ key.float().mT * scale
        probabilities = scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1)
        seen = probabilities.masked_fill(~mask, 0.0)
        return (seen @ value.float()).to(query.dtype)


def _gated(attended: Tensor, value: Tensor, gates: Tensor) -> Tensor:
    """Return attention and the mean of all values, mixed by gates' logits (batch, heads, T, 2)."""
    first, second = gates.float().sigmoid().split(1, -1)
    mixed = second * first * attended.float() + (1 - second) * running_mean(value)
    return mixed.to(attended.dtype)


def _ranges(tokens: int) -> list[range]:
    return [range(k, min(tokens, k + QUERIES_AT_ONCE)) for k in range(0, tokens, QUERIES_AT_ONCE)]
