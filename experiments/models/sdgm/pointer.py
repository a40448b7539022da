"""Context from the last tokens, and a distribution over their ids: pointer and generator.

    a_t = softmax over the window of (W_q h_t · h_i) / √width,  i in (t − window, t]
    c_t = Σ_i a_{t,i} h_i
    p(w) = g_t · softmax(V [h_t; c_t])_w + (1 − g_t) · Σ_i a_{t,i} · 1[w_i = w],   g_t = σ(u · [h_t; c_t])

h is the normed x̂. The sources do not say what the context is; here it is this content attention of a fixed
width: linear in the length of the text, and no attention over all of it. p is of the *next* token: a target
at t itself would be read off x̂_t, which is made from it.

Two controls are other heads: `generator` has the context and copies nothing (g = 1); `mean` has the mean of
the window for a context and copies nothing, so that a model has no attention at all.
"""

import enum
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SMALLEST = 1e-30
"""Smallest probability whose logarithm is taken."""


class Head(enum.Enum):
    """Use that the head makes of the last tokens."""

    pointer = "pointer"
    """Content attention, whose weights are a distribution over tokens to copy."""
    generator = "generator"
    """Content attention; no token is copied."""
    mean = "mean"
    """Mean of the window; no token is copied."""


@dataclass
class Pointed:
    """Results of a block of queries in its window."""

    context: Tensor
    """(batch, queries, width)"""
    weights: Tensor
    """(batch, queries, keys), float32 or wider: 0 for keys outside of a query's window; rows sum to 1."""
    ids: Tensor
    """Ids of the keys (batch, keys)."""


def pointed(query: Tensor, hidden: Tensor, ids: Tensor, window: int) -> list[Pointed]:
    """Return what queries find, in blocks of at most `window` queries.

    Args:
        query: (batch, queries, width), of the last tokens of `hidden`.
        hidden: keys and values (batch, tokens, width).
        ids: of the keys (batch, tokens).
        window: keys of a query, itself included.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)  # copies are probabilities: rows sum to 1
    before = hidden.shape[1] - query.shape[1]
    found, start = [], before
    for block in query.split(window, dim=1):
        first, stop = max(0, start - window + 1), start + block.shape[1]
        keys = hidden[:, first:stop]
        scores = block @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])
        at, of = (
            torch.arange(start, stop, device=ids.device)[:, None],
            torch.arange(first, stop, device=ids.device),
        )
        visible = (of <= at) & (of > at - window)
        weights = scores.to(wide).masked_fill(~visible, -torch.inf).softmax(-1)
        found.append(Pointed(weights.to(keys.dtype) @ keys, weights, ids[:, first:stop]))
        start = stop
    return found


def of_last(found: list[Pointed], queries: int) -> list[Pointed]:
    """Return what the last queries found, at most as many as there are."""
    kept: list[Pointed] = []
    for each in reversed(found):
        if queries <= 0:
            break
        kept.insert(0, Pointed(each.context[:, -queries:], each.weights[:, -queries:], each.ids))
        queries -= each.weights.shape[1]
    return kept


def mixture(generated: Tensor, gate: Tensor | None, found: list[Pointed]) -> Tensor:
    """Return the logarithm of the mixed distribution, (batch, queries, vocabulary), float32 or wider.

    Args:
        generated: logits of the generator (batch, queries, vocabulary).
        gate: g, the share of the generator (batch, queries, 1); None where nothing is copied.
        found: blocks that have all queries.
    """
    wide = torch.promote_types(generated.dtype, torch.float32)
    if gate is None:
        return generated.to(wide).log_softmax(-1)
    gate = gate.to(wide)
    sizes = [each.weights.shape[1] for each in found]
    shares = zip(
        (gate * generated.to(wide).softmax(-1)).split(sizes, 1),
        (1 - gate).split(sizes, 1),
        found,
        strict=True,
    )
    parts = [
        share.scatter_add(-1, each.ids[:, None].expand_as(each.weights), rest * each.weights)
        for share, rest, each in shares
    ]
    return torch.cat(parts, dim=1).clamp_min(SMALLEST).log()


class Context(nn.Module):
    """Query and gate of the pointer; of the other heads, what they have of them."""

    def __init__(self, width: int, window: int, head: Head = Head.pointer) -> None:
        super().__init__()
        self.window = window
        self.query = None if head is Head.mean else nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(2 * width, 1) if head is Head.pointer else None

    def forward(
        self, queries: Tensor, hidden: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor | None, list[Pointed]]:
        """Return [h; c] (batch, queries, 2 · width), the gate (batch, queries, 1), and what was found."""
        asked = torch.zeros_like(queries) if self.query is None else self.query(queries)
        found = pointed(asked, hidden, ids, self.window)
        both = torch.cat([queries, torch.cat([each.context for each in found], dim=1)], dim=-1)
        return both, None if self.gate is None else self.gate(both).sigmoid(), found
