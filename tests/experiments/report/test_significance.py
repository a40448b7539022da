"""Vectors of runs: their distance is half of the paired interval, for each pair."""

import copy
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.intervals import mean_interval, wave_values
from experiments.compare.paired import compare
from experiments.report.significance import Vectors, vectors
from experiments.results.record import Row
from tests.experiments.rows import finished


def pair(one: Vectors, other: Vectors, key: str) -> tuple[float, float]:
    """Return difference of the means and half of its interval, as the page computes them."""
    first, second = np.asarray(one[key]), np.asarray(other[key])
    return float(first[0] - second[0]), float(np.linalg.norm(first[1:] - second[1:]))


@given(st.integers(6, 60), st.sampled_from((1, 8, 15)), st.integers(0, 9))
def test_the_distance_of_two_vectors_is_half_of_the_interval(windows: int, blocks: int, seed: int) -> None:
    one, other = np.random.default_rng(seed).normal(3, 1, (2, windows * blocks))
    interval = mean_interval(one - other, blocks)
    first, second = wave_values(one, blocks), wave_values(other, blocks)
    assert interval is not None
    assert first is not None
    assert second is not None
    half = np.linalg.norm(first - second)
    assert interval == pytest.approx(((one - other).mean() - half, (one - other).mean() + half))


def test_too_few_windows_have_no_vector() -> None:
    assert wave_values(np.ones(5)) is None
    row = finished("sinq")
    row["samples"]["perplexity"]["window_nll"] = [1.0] * 5
    assert "perplexity" not in vectors([row])[0]


@pytest.mark.parametrize("in_blocks", [False, True])
def test_every_pair_of_runs_has_the_interval_of_the_comparison(in_blocks: bool) -> None:
    rows = [finished(method, bits) for method in ("sinq", "rtn", "hqq") for bits in (4, 3)]
    if in_blocks:
        rows = [blocked(row) for row in rows]
    found = {row["run_id"]: each for row, each in zip(rows, vectors(rows), strict=True)}
    for one, other in combinations(rows, 2):
        comparison = compare(one, other)
        assert comparison.interval is not None
        delta, half = pair(found[one["run_id"]], found[other["run_id"]], "perplexity")
        assert (delta - half, delta + half) == pytest.approx(comparison.interval, abs=1e-7)


def test_blocks_count_only_where_all_runs_have_them() -> None:
    rows = [finished("sinq"), finished("rtn")]
    by_window = vectors(rows)
    assert vectors([blocked(rows[0]), rows[1]]) == by_window
    assert len(vectors([*map(blocked, rows)])[0]["perplexity"]) > len(by_window[0]["perplexity"])


def test_a_value_that_is_not_finite_leaves_a_run_without_vector() -> None:
    row = finished("rtn")
    row["samples"]["perplexity"]["window_nll"][3] = float("inf")
    found = vectors([finished("sinq"), row])
    assert "perplexity" in found[0]
    assert "perplexity" not in found[1]
    assert "kl" in found[1]


def blocked(row: Row, blocks: int = 8) -> Row:
    """Return the row with blocks whose means are the windows' losses."""
    made = copy.deepcopy(row)
    windows = np.asarray(row["samples"]["perplexity"]["window_nll"])
    noise = np.random.default_rng(len(row["run_id"])).normal(0, 0.1, (len(windows), blocks))
    made["samples"]["perplexity"]["block_nll"] = (
        (windows[:, None] + noise - noise.mean(1, keepdims=True)).ravel().tolist()
    )
    return made
