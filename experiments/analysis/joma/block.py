"""A block of attention and MLP, and its gradient flow, in the coordinates of the theory.

A query q attends to contextual tokens with frequencies x (tokens,) in a text:

    b = attend(x, z_q)              exp: x ∘ exp(z/T);  linear: x ∘ z;  softmax: x ∘ exp(z/T) / Σ x exp(z/T)
    f = U b + u_q                   residual: the embedding of the query, orthogonal to the columns of U
    h_k = φ(w_kᵀ f) = φ(v_kᵀ b + r_kq)         with v_k = Uᵀ w_k, r_kq = w_kᵀ u_q

U is orthonormal, so gradient flow of w is that of v and r. The logits of the classes
are h, and the flow climbs their mean log-likelihood. `overlap` takes the orthogonality away:
it is Uᵀ u_q, which then adds to b, and the invariants no longer hold.
"""

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Attention(enum.Enum):
    """Kind of attention: exponentials of logits, the logits themselves, or a softmax."""

    exp = "exp"
    linear = "linear"
    softmax = "softmax"


class Activation(enum.Enum):
    """Nonlinearity φ of the MLP."""

    linear = "linear"
    relu = "relu"
    tanh = "tanh"


@dataclass(frozen=True)
class Weights:
    """Trained numbers of a block, or their rates of change."""

    v: Array
    """Lower MLP weights on contextual tokens (hidden, tokens)."""
    z: Array
    """Logits of attention (queries, tokens)."""
    r: Array
    """Lower MLP weights on the query (hidden, queries)."""

    def flat(self) -> Array:
        return np.concatenate([self.v.ravel(), self.z.ravel(), self.r.ravel()])

    def like(self, flat: Array) -> "Weights":
        """Return weights of this one's shapes from a vector, as `flat` makes it."""
        v, z, r = np.split(flat, np.cumsum([self.v.size, self.z.size]))
        return Weights(v.reshape(self.v.shape), z.reshape(self.z.shape), r.reshape(self.r.shape))


@dataclass(frozen=True)
class Block:
    """Texts, their classes, and the kinds of attention and nonlinearity."""

    x: Array
    """Frequencies of contextual tokens (texts, tokens)."""
    labels: npt.NDArray[np.int64]
    """Class of each text (texts,); as many classes as hidden units."""
    queries: npt.NDArray[np.int64]
    """Query of each text (texts,)."""
    attention: Attention
    activation: Activation
    temperature: float = 1.0
    """T; linear attention has none."""
    overlap: float = 0.0
    """Each entry of Uᵀ u_q; 0 is the theory's assumption."""

    def attend(self, z: Array) -> Array:
        """Return b (texts, tokens)."""
        logits = z[self.queries]
        if self.attention is Attention.linear:
            return self.x * logits
        weighed = self.x * np.exp(logits / self.temperature)
        softmax = self.attention is Attention.softmax
        return weighed / weighed.sum(1, keepdims=True) if softmax else weighed

    def gradient(self, weights: Weights) -> Weights:
        """Return the gradient of the mean log-likelihood, the velocity of gradient flow."""
        b = self.attend(weights.z)
        inputs = b + self.overlap
        before = inputs @ weights.v.T + weights.r.T[self.queries]
        hidden, slope = activated(before, self.activation)
        signal = (np.eye(hidden.shape[1])[self.labels] - softmax(hidden)) / len(self.x) * slope
        queries = np.eye(len(weights.z))[self.queries]
        return Weights(
            signal.T @ inputs, queries.T @ self._to_logits(b, signal @ weights.v), signal.T @ queries
        )

    def _to_logits(self, b: Array, to_b: Array) -> Array:
        """Return a gradient by z (texts, tokens), from that by b."""
        if self.attention is Attention.linear:
            return self.x * to_b
        if self.attention is Attention.softmax:
            to_b = to_b - (b * to_b).sum(1, keepdims=True)
        return b * to_b / self.temperature


def activated(before: Array, activation: Activation) -> tuple[Array, Array]:
    """Return φ and its slope."""
    if activation is Activation.linear:
        return before, np.ones_like(before)
    if activation is Activation.relu:
        return np.maximum(before, 0), (before > 0).astype(np.float64)
    after = np.tanh(before)
    return after, 1 - after**2


def softmax(logits: Array) -> Array:
    """Return softmax over the last dimension."""
    powers: Array = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
