"""The erf law against its closed form, theorem 4 against its limit, the curve of the entropy."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import erfinv

from experiments.analysis.joma import laws
from experiments.analysis.joma.laws import (
    Bounce,
    Toy,
    bounce,
    entropy,
    erf_deviation,
    linear_course,
    theorem_4,
)

DELTA = np.array([1.0, 0.6, -0.3])


def test_the_linear_course_is_the_closed_form() -> None:
    times = np.linspace(0, 1.2, 7)
    expected = math.sqrt(2) * erfinv(math.sqrt(2 / math.pi) * times[:, None] * DELTA)
    np.testing.assert_allclose(linear_course(DELTA, times), expected, rtol=1e-7, atol=1e-12)


def test_the_erf_law_holds() -> None:
    assert erf_deviation(DELTA, np.linspace(0, 1.2, 13)) < 1e-8


def test_a_time_after_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"times=1\.3 is not possible; v is infinite at 1\.25331"):
        linear_course(DELTA, np.array([0, 1.3]))


def test_theorem_4_rises_to_its_limit() -> None:
    ratios, limit = theorem_4(np.array([0.0, 2, 4, 6, 8]))
    assert limit == pytest.approx(math.exp(0.625))
    assert ratios == pytest.approx([1.49, 1.71, 1.77, 1.80], abs=0.015)  # values of an independent run
    assert np.all(np.diff(ratios) > 0)
    assert ratios[-1] < limit
    assert theorem_4(np.array([0.0, 1, 10]), (1.0, 1.0))[0] == pytest.approx([1, 1])


@pytest.mark.parametrize("seed", range(4))
def test_entropy_has_one_minimum_and_its_linear_control_none(seed: int) -> None:
    toy = Toy(steps=6000, seed=seed)
    steps = np.diff(toy.entropies())
    turns = np.flatnonzero(np.diff(np.sign(steps[np.abs(steps) > 1e-12])))
    assert len(turns) == 1
    assert bounce(toy.entropies()).rebound > 0.1
    linear = toy.entropies(is_linear=True)
    assert linear[0] == pytest.approx(math.log(10))
    assert np.all(np.diff(linear) <= 1e-12)
    assert bounce(linear).rebound < 1e-9


def test_entropy_ends_at_its_limit() -> None:
    toy = Toy(tokens=4, steps=40_000)
    assert toy.entropies()[-1] == pytest.approx(toy.limit(), abs=1e-3)


def test_a_solution_that_stops_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = SimpleNamespace(success=False, t=np.array([0.5]), message="step too small")
    monkeypatch.setattr(laws, "solve_ivp", lambda *_, **__: stopped)
    with pytest.raises(ValueError, match=r"solved to time 0\.5 of 1: step too small"):
        theorem_4(np.array([0.0, 1]))


def test_entropy_of_known_distributions() -> None:
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(math.log(8))
    assert entropy(np.array([1.0, 0.0])) == 0


def test_drop_and_rebound_by_hand() -> None:
    found = bounce(np.array([2.0, 1.0, 0.5, 1.0, 1.25]))
    assert found == Bounce(2.0, 0.5, 2, 1.25)
    assert (found.drop, found.rebound) == (0.75, 0.5)
    assert bounce(np.ones(3)).rebound == 0
