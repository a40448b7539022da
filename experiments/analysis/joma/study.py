"""All checks of JoMA's theory as entries of tables; seconds of work.

Every exact statement has a control that breaks one assumption, so that a drift near zero means something.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from experiments.analysis.joma.block import Activation, Attention, Block, Weights
from experiments.analysis.joma.data import figure
from experiments.analysis.joma.flows import descent, evenly, solved
from experiments.analysis.joma.invariants import drift, moved, softmax_agreement
from experiments.analysis.joma.laws import Toy, bounce, erf_deviation, theorem_4

EXACT = (Attention.exp, Attention.linear)
UNTIL = 30.0
"""Time of gradient flow; Σ v² of a token moves by about 1."""
OVERLAP = 1.0
RATES = (0.1, 0.01, 0.001)
DESCENT_UNTIL = 10.0
DELTA = np.array([1.0, 0.7, 0.4, -0.2])
"""Constant gradients of the erf law."""
FIGURE_STEPS, FIGURE_RATE, FIGURE_TEMPERATURE, EVERY = 2000, 0.1, 0.5, 20


Course = tuple[Block, list[Weights]]


@dataclass(frozen=True)
class Entry:
    """A line of a table: a case and its numbers."""

    study: str
    case: str
    values: dict[str, float]


def entries(seeds: int) -> list[Entry]:
    """Return the lines of all tables; softmax attention is averaged over seeds 0 … seeds − 1."""
    return [*invariants(), *euler(), *softmax(seeds), *laws(), *toys()]


def invariants() -> Iterator[Entry]:
    """Yield drifts of exact invariants under the adaptive solver, and those of their controls."""
    for attention, activation, queries in product(EXACT, (Activation.linear, Activation.tanh), (1, 3)):
        case = (
            f"{attention.value}, {activation.value} MLP, {queries} {'query' if queries == 1 else 'queries'}"
        )
        yield _drift(case, *_flow(attention, activation, queries))
    for attention in EXACT:
        case = f"control: {attention.value}, tanh MLP"
        yield _drift(f"{case}, residual not orthogonal", *_flow(attention, Activation.tanh, overlap=OVERLAP))
        block, course = _flow(attention, Activation.tanh)
        other = Attention.exp if attention is Attention.linear else Attention.linear
        wrong = replace(block, attention=other)
        yield _drift(f"{case}, the invariant of {other.value} attention", wrong, course)


def _flow(attention: Attention, activation: Activation, queries: int = 1, overlap: float = 0.0) -> Course:
    block, start = figure(attention, activation, queries=queries, overlap=overlap)
    return block, solved(block, start, evenly(UNTIL, 16))


def _drift(case: str, block: Block, course: list[Weights]) -> Entry:
    return Entry("invariants", case, {"Σv² moved": moved(course), "drift": drift(block, course)})


def euler() -> Iterator[Entry]:
    """Yield drifts under gradient descent, proportional to the step; ReLU, which the solver refuses."""
    for rate in RATES:
        block, start = figure(Attention.exp, Activation.relu)
        course = list(descent(block, start, round(DESCENT_UNTIL / rate), rate))
        yield _drift(f"exp, relu MLP, descent of step {rate:g}", block, course)


def softmax(seeds: int) -> Iterator[Entry]:
    """Yield the agreement of softmax attention's relation, which is approximate, in the paper's setting."""
    for activation, bumps in product((Activation.linear, Activation.relu), (True, False)):
        found = [_agreement(activation, bumps, seed) for seed in range(seeds)]
        names = ("both terms", "Σv² alone", "norm alone", "slope at end")
        case = f"{activation.value} MLP, {'bumps' if bumps else 'random'}"
        yield Entry("softmax", case, dict(zip(names, np.mean(found, axis=0).tolist(), strict=True)))


def _agreement(activation: Activation, bumps: bool, seed: int) -> list[float]:
    block, start = figure(Attention.softmax, activation, seed, temperature=FIGURE_TEMPERATURE, bumps=bumps)
    course = list(descent(block, start, FIGURE_STEPS, FIGURE_RATE))[::EVERY]
    agreement = softmax_agreement(block, course)
    return [agreement.both, agreement.squares, agreement.norm, agreement.slope]


def laws() -> Iterator[Entry]:
    """Yield the erf law's deviation, and theorem 4's ratio as it nears its limit."""
    yield Entry("laws", "erf(v/√2)/Δ = √(2/π) t, relative deviation",
                {"value": erf_deviation(DELTA, evenly(1.2, 13)), "limit": 0.0})  # fmt: skip
    times = np.array([0.0, 2, 4, 6, 8])
    ratios, limit = theorem_4(times)
    for time, ratio in zip(times[1:], ratios, strict=True):
        yield Entry("laws", f"theorem 4, ratio at t={time:g}", {"value": float(ratio), "limit": limit})


def toys() -> Iterator[Entry]:
    """Yield drop and rebound of the entropy of attention, and the linear control without rebound."""
    toy = Toy()
    for is_linear in (False, True):
        found = bounce(toy.entropies(is_linear))
        values = {"start": found.start, "minimum": found.minimum, "at step": float(found.step)}
        values |= {"end": found.end, "drop": found.drop, "rebound": found.rebound}
        values |= {"limit": 0.0 if is_linear else toy.limit()}
        yield Entry("entropy", "linear control" if is_linear else "nonlinear", values)


def curve() -> dict[str, list[float]]:
    """Return the toy's entropies in nats after each step, for a figure."""
    toy = Toy()
    return {"nonlinear": toy.entropies().tolist(), "linear control": toy.entropies(True).tolist()}
