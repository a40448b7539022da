"""Changes by compression at each position: divergence, the right token's probability, the top token.

With p the dense model's distribution of the next token and q the compressed model's, each position has

    kl           KL(p ‖ q) = Σ p (log p − log q) over the whole vocabulary, in nats
    delta_p      q(right) − p(right), "right" being the token that follows in the text
    confidence   max p
    flipped      1 where the most probable token is another one (of equally probable ones the first counts)
    tied         1 where the most probable token is not the only one, in p or q

Sums over the vocabulary are in float32, which is good to about 1e-7 nats.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.evaluation.divergence import Expected, flips, tied

Numbers = NDArray[np.float64]
IMPOSSIBLE = -1e4
"""Log-probability that stands for −∞, and the difference for ∞, in nats: numbers that 0 times is 0."""


@dataclass(frozen=True)
class Positions:
    """Changes at positions in a row; each array is float64 (positions,)."""

    kl: Numbers
    delta_p: Numbers
    confidence: Numbers
    flipped: Numbers
    tied: Numbers
    token: NDArray[np.int64]
    """The right token."""

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Return the positions of several parts, one after the other."""
        columns = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        return cls(*map(np.concatenate, columns))


class Changes:
    """Changes of one window, seen chunk by chunk."""

    def __init__(self, dense: Iterator[Tensor], targets: Tensor) -> None:
        self._dense, self._targets = dense, targets
        self._parts: list[Positions] = []
        self._seen = 0

    def add(self, compressed: Tensor) -> None:
        """Add the log-probabilities (positions, vocabulary) of the next positions, which stay as they are."""
        targets = self._targets[self._seen : self._seen + len(compressed)]
        self._parts.append(changes(next(self._dense), compressed, targets))
        self._seen += len(compressed)

    @property
    def positions(self) -> Positions:
        return Positions.joined(self._parts)


def changes(dense: Tensor, compressed: Tensor, targets: Tensor) -> Positions:
    """Return the changes at positions.

    A prediction that is not a number makes its position's `kl`, `flipped` and `tied` NaN.

    Args:
        dense: log-probabilities of the dense model, float32 (positions, vocabulary); overwritten.
        compressed: those of the compressed model.
        targets: the right tokens, int64 (positions,).
    """
    right = [each.gather(1, targets[:, None])[:, 0].double().exp() for each in (dense, compressed)]
    top, tokens = dense.max(-1, keepdim=True)
    changed, ties = flips(compressed, Expected(tokens, top.double(), tied(dense)))
    confidence, delta = top[:, 0].double().exp(), right[1] - right[0]
    columns = (divergence(dense, compressed), delta, confidence, changed, ties, targets)
    return Positions(*(column.cpu().numpy() for column in columns))


def divergence(dense: Tensor, compressed: Tensor) -> Tensor:
    """Return KL(dense ‖ compressed), float64 (positions,); `dense` is overwritten."""
    probabilities = dense.clamp_min_(IMPOSSIBLE).exp()
    difference = dense.sub_(compressed).clamp_max_(-IMPOSSIBLE)
    return torch.einsum("pv,pv->p", probabilities, difference).double()
