"""First integrals of gradient flow (theorem 1): what attention logits have in common with MLP weights.

| attention | conserved for each token | |
|---|---|---|
| exp | Σ_q z_q − ½ Σ_k v_k² / T | exact, any nonlinearity |
| linear | Σ_q z_q² − Σ_k v_k² | exact, any nonlinearity |
| softmax | z − ½ Σ_k (v_k² − ‖v_k‖² b̄) / T | **approximate** |

The last is exact only where b̄, the mean of b, does not move and a factorization holds. With one query they
are the paper's. With several that share the MLP, the sum over queries is conserved, since
each query's z moves by its texts' part of v's gradient (our algebra); softmax has one query only. The softmax
relation is measured as the paper does, by a normalized correlation of both sides, b̄ being the mean
frequencies. Both sides are taken as changes since the start: the relation has a constant for each
token, which without this would be the small random z of the start. A correlation is blind to a factor, so
the slope is measured beside it: it leaves 1 as b moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.analysis.joma.block import Array, Attention, Block, Weights


def conserved(block: Block, weights: Weights) -> Array:
    """Return the first integral of each token (tokens,).

    Raises:
        ValueError: softmax attention has none that is exact.
    """
    squares = np.square(weights.v).sum(0)
    if block.attention is Attention.exp:
        return weights.z.sum(0) - squares / (2 * block.temperature)
    if block.attention is Attention.linear:
        return np.square(weights.z).sum(0) - squares
    raise ValueError("softmax attention conserves nothing exactly; see softmax_agreement")


def drift(block: Block, course: Sequence[Weights]) -> float:
    """Return the largest change of a first integral, over tokens and times."""
    first = conserved(block, course[0])
    return max(float(np.abs(conserved(block, weights) - first).max()) for weights in course)


def moved(course: Sequence[Weights]) -> float:
    """Return the largest change of Σ_k v_k², over tokens and times: what the drift is compared with."""
    first = np.square(course[0].v).sum(0)
    return max(float(np.abs(np.square(weights.v).sum(0) - first).max()) for weights in course)


@dataclass(frozen=True)
class SoftmaxAgreement:
    """Normalized correlations of the change of z with the right side's, over tokens; means over times."""

    both: float
    """With both terms, ½ Σ_k v_k² / T − ½ Σ_k ‖v_k‖² b̄ / T."""
    squares: float
    """With the first term alone."""
    norm: float
    """With the second term alone."""
    slope: float
    """Factor of the right side that fits the change of z best, at the last time; exactly 1 in the theorem."""


def softmax_agreement(block: Block, course: Sequence[Weights]) -> SoftmaxAgreement:
    """Compare the two sides of softmax attention's relation, at all times after the first."""
    start = course[0]
    first = softmax_terms(block, start)
    found = []
    for weights in course[1:]:
        change = weights.z[0] - start.z[0]
        squares, norm = (now - then for now, then in zip(softmax_terms(block, weights), first, strict=True))
        found.append([correlation(change, side) for side in (squares + norm, squares, norm)])
    right = centred(squares + norm)
    both, of_squares, of_norm = np.mean(found, axis=0).tolist()
    return SoftmaxAgreement(both, of_squares, of_norm, float(right @ centred(change) / (right @ right)))


def softmax_terms(block: Block, weights: Weights) -> tuple[Array, Array]:
    """Return the two terms of softmax attention's right side, ½ Σ v²/T and −½ Σ ‖v‖² b̄/T (tokens,).

    b̄ is the mean frequencies, normalized to sum 1 as b is.
    """
    mean = (block.x / block.x.sum(1, keepdims=True)).mean(0)
    squares = np.square(weights.v)
    half = 1 / (2 * block.temperature)
    return half * squares.sum(0), -half * squares.sum() * mean


def correlation(a: Array, b: Array) -> float:
    """Return the normalized correlation of two vectors, means removed; 0 where one is constant."""
    a, b = centred(a), centred(b)
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size else 0.0


def centred(a: Array) -> Array:
    """Return a vector with its mean removed."""
    return a - a.mean()
