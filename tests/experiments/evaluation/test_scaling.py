"""Scaling: fits against scipy, curves with known exponents and crossings, a model's work counted."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress, t

from experiments.evaluation import Scaling, scaling
from experiments.evaluation.scaling import crossover, exponents, fitted
from experiments.models.source import sparing_clone
from sinq import SINQ, Grid
from tests.experiments.tiny import subject

OPTIONS = Scaling(lengths=(8, 16, 32, 64), rounds=2)
LENGTHS = (512, 1024, 2048, 4096, 8192)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 12), st.integers(0, 1000))
def test_the_fit_is_scipys(count: int, seed: int) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, count))
    expected = linregress(x, y)
    slope, half = fitted(list(zip(x.tolist(), y.tolist(), strict=True)))
    assert slope == pytest.approx(expected.slope)
    assert half == pytest.approx(t.ppf(0.975, count - 2) * expected.stderr, rel=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_a_power_has_its_exponent(exponent: float) -> None:
    found = exponents({length: 3e-4 * length**exponent for length in LENGTHS})
    assert found == {name: pytest.approx(exponent) for name in found}
    assert set(found) == {"exponent", "exponent_low", "exponent_high", "last_exponent"}


def test_a_mixture_lies_between_and_ends_nearer_to_its_larger_power() -> None:
    found = exponents({length: length + length**2 / 4000 for length in LENGTHS})
    assert 1 < found["exponent_low"] < found["exponent"] < found["last_exponent"] < 2
    assert found["exponent"] < found["exponent_high"]


def test_values_of_zero_have_no_exponent() -> None:
    assert exponents({1: 0.0, 2: 0.0, 4: 1.0, 8: 2.0}) == {}
    assert exponents({1: 0.0, 2: 1.0, 4: 2.0, 8: 4.0})["exponent"] == pytest.approx(1)


def test_a_crossing_is_found_where_the_powers_are_equal() -> None:
    linear = {length: 3000.0 * length for length in LENGTHS}
    square = {length: float(length**2) for length in LENGTHS}
    found = crossover(linear, square)
    assert found == {"below_dense": "from 4096 tokens", "crossover_tokens": pytest.approx(3000)}
    assert crossover(square, linear) == {"below_dense": "not at the longest length"}
    assert crossover(linear, {length: 2 * value for length, value in linear.items()}) == {
        "below_dense": "at every length"
    }
    assert crossover(square, {length: value / 2 for length, value in square.items()}) == {
        "below_dense": "at no length"
    }


def test_the_last_crossing_counts() -> None:
    dense = dict.fromkeys(LENGTHS, 1.0)
    found = crossover(dict(zip(LENGTHS, (0.5, 2, 0.5, 2, 0.5), strict=True)), dense)
    assert found["below_dense"] == "from 8192 tokens"
    assert found["crossover_tokens"] == pytest.approx(math.sqrt(4096 * 8192))


def test_a_value_of_zero_is_no_crossing() -> None:
    found = crossover({1: 2.0, 2: 0.0, 4: 0.0}, {1: 1.0, 2: 1.0, 4: 1.0})
    assert found == {"below_dense": "from 2 tokens"}


def test_each_model_reads_each_length_once_a_round_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = subject("llama")
    model: Any = sparing_clone(dense.model)
    context = replace(dense, model=model, report=SINQ(Grid(bits=3, group_size=32)).compress(model))
    read: list[tuple[bool, int]] = []

    def timed(which: Any, prompt: Any, device: Any) -> float:
        read.append((which is model, prompt.shape[1]))
        return prompt.shape[1] ** (1.0 if which is model else 2.0) * (20 if which is model else 1)

    monkeypatch.setattr(scaling, "_seconds", timed)
    found = OPTIONS.measure(context)
    assert read == 2 * [(which, length) for length in OPTIONS.lengths for which in (False, True)]
    prefill = found.metrics["prefill"]
    assert prefill["exponent"] == pytest.approx(1)
    assert prefill["dense_exponent"] == pytest.approx(2)
    assert prefill["crossover_tokens"] == pytest.approx(20)
    assert found.samples["seconds"]["dense"]["64"] == [4096, 4096]


def test_a_dense_model_has_its_exponents_alone() -> None:
    found = OPTIONS.measure(subject("llama"))
    assert found.metrics["prefill"].keys() == {
        f"dense_{key}" for key in ("exponent", "exponent_low", "exponent_high", "last_exponent")
    }
    assert all(len(times) == 2 for times in found.samples["seconds"]["dense"].values())
    assert set(found.samples["increase_bytes"]["dense"]) == {"8", "16", "32", "64"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (8, 16)}, r"lengths=\[8, 16\] is not possible"),
        ({"lengths": (8, 16, 16)}, "lengths must ascend"),
        ({"lengths": (0, 8, 16)}, "lengths"),
        ({"rounds": 0}, "rounds=0 is not possible"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scaling(**options)


def test_lists_become_tuples() -> None:
    assert Scaling(lengths=[1, 2, 4]) == Scaling(lengths=(1, 2, 4))  # type: ignore[arg-type]


def test_a_length_beyond_the_context_is_refused_before_work() -> None:
    with pytest.raises(ValueError, match=r"lengths=\[8, 64, 128\] do not fit the model's context of 64"):
        Scaling(lengths=(8, 64, 128)).check(subject("llama"))
    OPTIONS.check(subject("llama"))
