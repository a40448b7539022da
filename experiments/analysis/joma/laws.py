"""Dynamics of MLP weights with attention integrated out: exp attention, z = ½ v², each token by itself.

**Linear MLP** with a gradient that does not change: v̇ = Δ ∘ exp(v²/2). Then erf(v/√2) / Δ is the same number
for all tokens, √(2/π) t from v(0) = 0: v = √2 erfinv(√(2/π) Δ t), which reaches infinity at t = √(π/2) / Δ.
The token with the largest Δ takes all, and attention grows sparser only.

**Nonlinear MLP**: v̇ = (μ − v) ∘ exp(v²/2). Theorem 4: with δ = 1 − v/μ, the ratio ln(1/δ_j) / ln(1/δ_k) tends
to exp((μ_j² − μ_k²)/2): salient tokens (large μ) converge exponentially faster. That a trained block follows
this equation is a heuristic step of the paper, and nothing here shows it.

**Entropy.** With attention softmax(v²/T) in place of exp(v²/2), the nonlinear dynamics first make attention
sparse, as salient tokens rush ahead, and then wider, as the others follow; its end is softmax(μ²/T). The
linear control v̇ = μ ∘ softmax(v²/T) only grows sparser.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import erf

from experiments.analysis.joma.block import Array, softmax

MU = (1.5, 1.0)
"""Fixed points of theorem 4's two tokens."""
RTOL = 1e-10


def linear_course(delta: Array, times: Array) -> Array:
    """Return v (times, tokens) of v̇ = Δ exp(v²/2) from 0, solved.

    Raises:
        ValueError: a token reaches infinity before the last time.
    """
    end = np.sqrt(np.pi / 2) / np.abs(delta).max()
    if times[-1] >= end:
        raise ValueError(f"times={times[-1]:g} is not possible; v is infinite at {end:g}, so end before")
    return _solved(lambda _, v: delta * np.exp(v**2 / 2), np.zeros_like(delta), times)


def erf_deviation(delta: Array, times: Array) -> float:
    """Return the largest relative deviation of erf(v/√2) / Δ from √(2/π) t, over tokens and times after 0."""
    v = linear_course(delta, times)[1:]
    expected = np.sqrt(2 / np.pi) * times[1:, None]
    return float(np.abs(erf(v / np.sqrt(2)) / delta / expected - 1).max())


def theorem_4(times: Array, mu: tuple[float, float] = MU) -> tuple[Array, float]:
    """Return ln(1/δ_1) / ln(1/δ_2) at times after 0, from v(0) = 0, and its limit."""
    fixed = np.array(mu)
    v = _solved(lambda _, v: (fixed - v) * np.exp(v**2 / 2), np.zeros(2), times)[1:]
    logs = -np.log(1 - v / fixed)
    return logs[:, 0] / logs[:, 1], float(np.exp((mu[0] ** 2 - mu[1] ** 2) / 2))


def _solved(velocity: Callable[[float, Array], Array], start: Array, times: Array) -> Array:
    found = solve_ivp(velocity, (0, times[-1]), start, "DOP853", times, rtol=RTOL, atol=1e-14)
    if not found.success:
        raise ValueError(f"the equation was solved to time {found.t[-1]:g} of {times[-1]:g}: {found.message}")
    course: Array = found.y.T
    return course


@dataclass(frozen=True)
class Toy:
    """The toy of the entropy curve: ten tokens, Euler steps."""

    tokens: int = 10
    temperature: float = 3.0
    rate: float = 0.02
    steps: int = 5000
    start: float = 0.05
    """v of every token at first."""
    seed: int = 0

    def mu(self) -> Array:
        """Return the tokens' fixed points, sorted: uniform from 1 to 4."""
        return np.sort(3 * np.random.default_rng(self.seed).uniform(size=self.tokens) + 1)

    def entropies(self, is_linear: bool = False) -> Array:
        """Return the entropy of attention, in nats, before the first step and after each (steps + 1,)."""
        mu, v, found = self.mu(), np.full(self.tokens, self.start), []
        for _ in range(self.steps + 1):
            attention = softmax(v**2 / self.temperature)
            found.append(entropy(attention))
            v = v + self.rate * (mu if is_linear else mu - v) * attention
        return np.array(found)

    def limit(self) -> float:
        """Return the entropy of softmax(μ²/T), where the nonlinear dynamics end."""
        return entropy(softmax(self.mu() ** 2 / self.temperature))


def entropy(p: Array) -> float:
    """Return −Σ p ln p in nats."""
    return max(0.0, float(-(p * np.log(p + 1e-300)).sum()))


@dataclass(frozen=True)
class Bounce:
    """Drop and rebound of a curve of entropies."""

    start: float
    minimum: float
    step: int
    """Position of the minimum."""
    end: float

    @property
    def drop(self) -> float:
        """Share of the first entropy that is lost at the minimum."""
        return (self.start - self.minimum) / self.start

    @property
    def rebound(self) -> float:
        """Share of the drop that is made up for at the end; 0 where nothing dropped."""
        lost = self.start - self.minimum
        return (self.end - self.minimum) / lost if lost else 0.0


def bounce(entropies: Array) -> Bounce:
    """Return the drop and rebound of a curve."""
    lowest = int(entropies.argmin())
    return Bounce(float(entropies[0]), float(entropies[lowest]), lowest, float(entropies[-1]))
