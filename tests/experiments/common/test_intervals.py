"""Intervals: against another derivation, their coverage of known processes, and what they must not depend on.

The table of coverage in `docs/measurement.md` is what this command prints:

    python -m pytest -q -n 0 -s tests/experiments/common/test_intervals.py -k coverage
"""

import re
from itertools import product
from math import cos, pi, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from experiments.common.intervals import FEWEST_WINDOWS, mean_interval, paired_shares, t_quantile

COUNTS, CORRELATIONS = (6, 16, 146), (0.0, 0.3, 0.5)
BLOCKS = 15
PAGE = Path(__file__).parents[3] / "docs" / "measurement.md"


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The interval, which is there."""
    found = mean_interval(values)
    assert found is not None
    return found


def written_out(y: list[float], rho: float = 0.35) -> tuple[float, float]:
    """The module's formula in plain loops, with scipy's critical value."""
    n = len(y)
    waves, total = int(1.2 * n**0.4), 0.0
    for j in range(1, waves + 1):
        wave = sqrt(2 / n) * sum(y[i] * cos(pi * j * (i + 0.5) / n) for i in range(n))
        total += wave**2 * (1 - 2 * rho * cos(pi * j / n) + rho**2) / (1 - rho) ** 2
    half = t.ppf(0.975, waves) * sqrt(total / waves / n)
    return sum(y) / n - half, sum(y) / n + half


def autoregression(draws: int, n: int, rho: float, seed: int = 0) -> NDArray[np.float64]:
    """Draws (draws, n) of a stationary first-order autoregression of mean 0 and deviation 1."""
    generator = np.random.default_rng(seed)
    values = [generator.standard_normal(draws)]
    for _ in range(n - 1):
        values.append(rho * values[-1] + sqrt(1 - rho**2) * generator.standard_normal(draws))
    return np.stack(values, axis=1)


def coverage(n: int, rho: float, draws: int) -> float:
    """The share of intervals of `n` neighbours that cover the mean of the process, in per cent."""
    ends = np.array([interval(values) for values in autoregression(draws, n, rho)])
    return 100 * float(np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0)))


@pytest.mark.parametrize("n", [6, 7, 16, 149, 1591])
def test_it_is_the_formula_written_out(n: int) -> None:
    values = np.random.default_rng(n).normal(0.1, 1, n)
    assert interval(values) == pytest.approx(written_out(values.tolist()), rel=1e-9)


def test_critical_values_are_scipys() -> None:
    degrees = [*range(1, 60), 500]
    assert [t_quantile(each) for each in degrees] == pytest.approx(t.ppf(0.975, degrees), rel=1e-12)


def test_coverage_is_what_the_page_says() -> None:
    """Between 93 and 97 % in every cell; the page's table is the one measured here."""
    measured = {cell: coverage(*cell, draws=10_000) for cell in product(COUNTS, CORRELATIONS)}
    lines = [" | ".join(f"{measured[n, rho]:.1f}" for rho in CORRELATIONS) for n in COUNTS]
    print("", *(f"| {n} | {line} |" for n, line in zip(COUNTS, lines, strict=True)), sep="\n")
    assert all(93 <= share <= 97 for share in measured.values()), measured
    stated = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [int(count) for count, *_ in stated] == list(COUNTS)
    found = [float(share) for _, *shares in stated for share in shares]
    assert found == pytest.approx(list(measured.values()), abs=0.06)


def within(windows: int, rho: float) -> float:
    """The autoregression of blocks, `BLOCKS` in a window, whose windows' means have the correlation `rho`."""

    def correlation(phi: float) -> float:
        shared = 1 - phi**BLOCKS
        return phi * shared**2 / (BLOCKS * (1 - phi**2) - 2 * phi * shared)

    return brentq(lambda phi: correlation(phi) - rho, 1e-6, 0.9999) if rho else 0.0


def processes(windows: int, rho: float, draws: int) -> dict[str, NDArray[np.float64]]:
    """Draws (draws, windows · BLOCKS) of two processes: what is alike fades along a text, or is a window's.

    The second one has as much that belongs to a block alone, so its windows have half the correlation.
    """
    n = windows * BLOCKS
    steps = np.repeat(autoregression(draws, windows, rho), BLOCKS, axis=1)
    alone = np.random.default_rng(7).standard_normal((draws, n)) * sqrt(BLOCKS)
    return {"fades": autoregression(draws, n, within(windows, rho)), "steps": steps + alone}


@pytest.mark.parametrize("windows", [4, 6, 16, 40])
@pytest.mark.parametrize("rho", CORRELATIONS)
def test_intervals_by_blocks_are_covered(windows: int, rho: float) -> None:
    """Between 93 and 97 %, give or take what 4,000 draws leave open."""
    for name, values in processes(windows, rho, 4000).items():
        ends = np.array([mean_interval(each, BLOCKS) for each in values])
        covered = 100 * np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0))
        print(windows, rho, name, covered)
        assert 92.5 <= covered <= 97.7, name


def test_blocks_make_intervals_narrower_and_need_fewer_windows() -> None:
    values = processes(16, 0.3, 500)["steps"]
    widths = [
        np.mean([np.ptp(mean_interval(each, count)) for each in values.reshape(500, 16 * count, -1).mean(2)])
        for count in (1, BLOCKS)
    ]
    assert 0.8 < widths[1] / widths[0] < 0.95
    four = values[0, : 4 * BLOCKS]
    assert mean_interval(four, BLOCKS) is not None
    assert mean_interval(four[: 3 * BLOCKS], BLOCKS) is None
    assert mean_interval(four.reshape(4, BLOCKS).mean(1)) is None
    assert mean_interval(four[:16], 4) is None


def test_one_block_a_window_is_the_interval_of_windows() -> None:
    values = np.random.default_rng(3).normal(size=9)
    assert mean_interval(values, 1) == mean_interval(values)


@pytest.mark.parametrize("n", [8, 11, 27, 64])
def test_other_counts_are_covered_too(n: int) -> None:
    assert 92.5 <= coverage(n, 0.5, 4000) <= coverage(n, 0.0, 4000) <= 97.5


@pytest.mark.parametrize("n", [6, 16, 146])
def test_values_far_from_normal_are_covered(n: int) -> None:
    """Windows of exponential and of heavy-tailed values; short intervals are the failure."""
    generator = np.random.default_rng(5)
    for centred in (generator.exponential(size=(3000, n)) - 1, generator.standard_t(4, size=(3000, n))):
        ends = np.array([interval(values) for values in centred])
        assert np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0)) > 0.93


def test_the_naive_interval_fails_where_this_one_holds() -> None:
    """The instrument can tell: Student's interval of 16 independent values covers far less here."""
    draws = autoregression(4000, 16, 0.5)
    half = t.ppf(0.975, 15) * draws.std(axis=1, ddof=1) / 4
    assert np.mean(np.abs(draws.mean(axis=1)) <= half) < 0.85


@given(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=40), st.floats(-100, 100), st.floats(0.01, 100))
def test_it_moves_and_stretches_with_the_values_and_reads_both_ways(
    values: list[float], shift: float, factor: float
) -> None:
    y = np.array(values)
    low, high = interval(y)
    close = {"rel": 1e-6, "abs": 1e-6 * (1 + np.abs(y).max()) * (1 + factor) + 1e-6 * abs(shift)}
    assert low <= high
    assert interval(y * factor + shift) == pytest.approx(
        (low * factor + shift, high * factor + shift), **close
    )
    assert interval(-y) == pytest.approx((-high, -low), **close)
    assert interval(y[::-1]) == pytest.approx((low, high), **close)


def test_it_is_the_same_at_each_call_and_without_spread_a_point() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert mean_interval(values) == mean_interval(values.copy())
    assert interval(np.full(20, 0.1)) == pytest.approx((0.1, 0.1), abs=1e-15)


def test_there_is_none_with_few_windows() -> None:
    assert FEWEST_WINDOWS == 6
    assert all(mean_interval(np.arange(float(n))) is None for n in range(6))
    assert mean_interval(np.arange(6.0)) is not None


@pytest.mark.parametrize("n", [6, 20, 200])
@pytest.mark.parametrize(("gain", "loss"), [(0.1, 0.1), (0.02, 0.05), (0.3, 0.1)])
def test_paired_shares_are_covered(n: int, gain: float, loss: float) -> None:
    counts = np.random.default_rng(1).multinomial(n, [gain, loss, 1 - gain - loss], 4000)
    ends = np.array([paired_shares(int(up), int(down), n) for up, down, _ in counts])
    assert np.mean((ends[:, 0] <= gain - loss) & (ends[:, 1] >= gain - loss)) > 0.93


def test_paired_shares_of_many_items_are_walds() -> None:
    n, up, down = 100_000, 3000, 5000
    half = norm.ppf(0.975) * sqrt((up + down) / n - ((up - down) / n) ** 2) / sqrt(n)
    assert paired_shares(up, down, n) == pytest.approx((-0.02 - half, -0.02 + half), abs=1e-5)
    assert paired_shares(0, 0, 4)[0] < 0 < paired_shares(0, 0, 4)[1]
    assert paired_shares(1, 0, 1)[1] <= 1
