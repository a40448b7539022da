"""Theorem 1: exact invariants under an adaptive solver and under descent, controls, softmax attention."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.analysis.joma import flows
from experiments.analysis.joma.block import Activation, Attention, Weights
from experiments.analysis.joma.data import figure
from experiments.analysis.joma.flows import descent, evenly, solved
from experiments.analysis.joma.invariants import conserved, correlation, drift, moved, softmax_agreement

EXACT = (Attention.exp, Attention.linear)


@pytest.mark.parametrize(
    ("attention", "activation", "queries"), list(product(EXACT, (Activation.linear, Activation.tanh), (1, 3)))
)
def test_they_do_not_drift_while_weights_move(
    attention: Attention, activation: Activation, queries: int
) -> None:
    block, start = figure(attention, activation, queries=queries)
    course = solved(block, start, evenly(30, 7))
    assert moved(course) > 0.5
    assert drift(block, course) <= 1e-12


def test_a_temperature_divides_the_right_side() -> None:
    block, start = figure(Attention.exp, Activation.tanh, temperature=0.5)
    course = solved(block, start, evenly(10, 3))
    by_hand = [weights.z[0] - np.square(weights.v).sum(0) for weights in course]
    np.testing.assert_allclose(by_hand[-1], by_hand[0], atol=1e-12)
    assert drift(block, course) <= 1e-12


def test_controls_drift() -> None:
    block, start = figure(Attention.exp, Activation.tanh)
    course = solved(block, start, evenly(30, 7))
    wrong = [weights.z[0] - np.square(weights.v).sum(0) for weights in course]  # the half left out
    assert np.abs(wrong[-1] - wrong[0]).max() > 0.3
    for attention in EXACT:
        overlapping, start = figure(attention, Activation.tanh, overlap=1.0)
        assert drift(overlapping, solved(overlapping, start, evenly(30, 7))) > 1e-3


def test_descent_drifts_in_proportion_to_its_step() -> None:
    drifts = []
    for rate in (0.1, 0.01):
        block, start = figure(Attention.exp, Activation.relu)
        drifts.append(drift(block, list(descent(block, start, round(10 / rate), rate))))
    assert drifts[0] > 1e-5
    assert drifts[0] / drifts[1] == pytest.approx(10, rel=0.05)


def test_descent_nears_the_solver() -> None:
    block, start = figure(Attention.linear, Activation.tanh)
    end = solved(block, start, evenly(2, 2))[-1]
    small, large = (list(descent(block, start, round(2 / rate), rate))[-1] for rate in (0.001, 0.01))
    errors = [np.abs(each.flat() - end.flat()).max() for each in (small, large)]
    assert errors[0] < 1e-3
    assert errors[1] / errors[0] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("bumps", [True, False])
def test_softmax_agrees_by_both_terms_and_less_by_each(bumps: bool) -> None:
    block, start = figure(Attention.softmax, Activation.linear, temperature=0.5, bumps=bumps)
    found = softmax_agreement(block, list(descent(block, start, 2000, 0.1))[::50])
    assert found.both >= 0.95
    assert found.squares < found.both - 0.02
    assert found.norm < found.squares
    assert 0 < found.slope < 0.9  # correlated, and not equal: the relation is no invariant


def test_softmax_claims_no_exact_invariant() -> None:
    block, start = figure(Attention.softmax, Activation.tanh)
    with pytest.raises(ValueError, match="softmax attention conserves nothing exactly"):
        conserved(block, start)


def test_the_solver_refuses_kinks_and_says_the_way_out() -> None:
    block, start = figure(Attention.exp, Activation.relu)
    with pytest.raises(ValueError, match=r"activation=relu .* use descent"):
        solved(block, start, evenly(1, 2))


def test_a_solution_that_stops_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = SimpleNamespace(success=False, t=np.array([0.25]), message="step too small")
    monkeypatch.setattr(flows, "solve_ivp", lambda *_, **__: stopped)
    block, start = figure(Attention.exp, Activation.tanh)
    with pytest.raises(ValueError, match=r"solved to time 0\.25 of 1: step too small"):
        solved(block, start, evenly(1, 2))


def test_correlation_is_numpys() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation(a, np.ones(9)) == 0


def test_drift_and_movement_of_a_course_by_hand() -> None:
    block, start = figure(Attention.exp, Activation.tanh)
    later = Weights(start.v * 2, start.z + 1, start.r)
    squares = np.square(start.v).sum(0)
    assert moved([start, later]) == pytest.approx(3 * squares.max())
    assert drift(block, [start, later]) == pytest.approx(np.abs(1 - 1.5 * squares).max())
