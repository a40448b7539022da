"""Forests, speeds, accuracies and durations: a line for each run, with the rows' numbers."""

from math import nan

import numpy as np
import pytest

from experiments.common.intervals import mean_interval
from experiments.report.comparable import Group, groups
from experiments.report.figure import Figure
from experiments.report.figures import durations, forest, zero_shot
from experiments.report.figures.series import series
from experiments.report.figures.strips import MOST
from experiments.report.reference import counterparts
from experiments.results.record import Row
from tests.experiments.report.scene import ids, marks, words
from tests.experiments.rows import SHIFTS, finished


def one_group(*rows: Row) -> Group:
    (group,) = groups(list(rows))
    return group


def differences(group: Group) -> Figure:
    found = counterparts(group, None)
    assert found is not None
    pairs = zip(group.rows, found.comparisons, strict=True)
    figure = forest.forest(
        group, series([group]), {row["run_id"]: each for row, each in pairs if each}, "sinq"
    )
    assert figure is not None
    return figure


def test_a_forest_has_the_paired_differences_and_their_intervals() -> None:
    rows = [finished(method, bits) for method in ("sinq", "rtn", "hqq") for bits in (4, 3)]
    figure = differences(one_group(finished("none"), *rows))
    assert [row["name"] for row in figure.rows] == [
        "hqq 4-bit g64", "hqq 3-bit g64", "rtn 4-bit g64", "rtn 3-bit g64",
    ]  # fmt: skip
    noise = [np.random.default_rng(len(name) + 4).normal(0, 0.005, 20) for name in ("rtn", "sinq")]
    delta = SHIFTS["rtn"] - SHIFTS["sinq"] + noise[0] - noise[1]
    low, high = mean_interval(delta) or (nan, nan)
    row = figure.rows[2]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((delta.mean(), low, high))
    assert row["decided"]
    assert row["label"] == f"{delta.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    assert "95 % intervals over 20 windows; hollow: the interval holds 0" in figure.note


def test_a_forest_is_drawn_to_scale_with_its_zero() -> None:
    figure = differences(one_group(finished("none"), finished("sinq"), finished("rtn"), finished("hqq")))
    at = dict(zip(ids(symbols := marks(figure, "symbol")), [item["x"] for item in symbols], strict=True))
    zero, *whiskers = sorted(marks(figure, "rule"), key=lambda item: "x2" in item)
    value = {row["run"]: row["value"] for row in figure.rows}
    per_nat = (at["rtn4t"] - at["hqq4t"]) / (value["rtn4t"] - value["hqq4t"])
    assert at["rtn4t"] - zero["x"] == pytest.approx(per_nat * value["rtn4t"])
    assert len(whiskers) == 2
    assert [word for word in words(figure) if word.startswith("+")] == [row["label"] for row in figure.rows]


def test_marks_without_an_interval_are_hollow_and_dashed_and_have_no_line() -> None:
    """Few windows, and one round of a latency."""
    rows = [finished("sinq"), finished("rtn"), finished("hqq")]
    for row in rows:
        row["metrics"]["perplexity"]["windows"] = 5
        row["samples"]["perplexity"] = {"window_nll": row["samples"]["perplexity"]["window_nll"][:5]}
        row["samples"]["latency"]["seconds"]["decode"] = {"dense": [1.0], "compressed": [0.5]}
    group = one_group(*rows)
    found = differences(group)
    (_, decode) = forest.latency(group, series([group]))
    for figure in (found, decode):
        symbols = marks(figure, "symbol")
        assert len(symbols) == len(figure.rows)
        assert {(item["fill"], tuple(item["strokeDash"])) for item in symbols} == {("transparent", (2, 2))}
        assert not [item for item in marks(figure, "rule") if "x2" in item]
    assert "No intervals: 5 are too few windows" in found.note
    assert all(row["label"].endswith("too few windows") for row in found.rows)
    assert "spread" not in decode.note


def test_an_interval_that_holds_no_difference_has_a_hollow_mark() -> None:
    group = one_group(finished("none"), finished("sinq"), finished("rtn", shift=0.1), finished("hqq"))
    figure = differences(group)
    decided = {row["run"]: row["decided"] for row in figure.rows}
    assert decided == {"hqq4t": True, "rtn4t": False}
    symbols = marks(figure, "symbol")
    fills = dict(zip(ids(symbols), [item["fill"] for item in symbols], strict=True))
    assert (fills["rtn4t"], fills["hqq4t"][0]) == ("transparent", "#")


def test_speeds_have_the_extremes_of_their_rounds() -> None:
    group = one_group(finished("none"), finished("sinq"), finished("sinq", 2))
    prefill, decode = forest.latency(group, series([group]))
    assert (prefill.key, decode.key) == ("latency_prefill", "latency_decode")
    row = decode.rows[0]
    assert [row["value"], row["low"], row["high"]] == pytest.approx([2, 2, 2.5])
    assert (row["label"], row["decided"], decode.rows[1]["decided"]) == ("2.00×, 10 → 20 tok/s", True, False)
    assert "spread of 2 rounds" in decode.note


def test_durations_are_statistics_and_quantizing_on_top() -> None:
    group = one_group(finished("none"), finished("sinq"), finished("sinq", 3))
    figure = durations.time(group, series([group]))
    assert figure is not None
    assert [(row["statistics"], row["quantizing"]) for row in figure.rows] == [(0.5, 5.0), (0.5, 4.0)]
    pale, full = marks(figure, "rect")[::2]  # of the first run
    assert full["x"] == pytest.approx(pale["x"] + pale["width"])
    assert full["width"] == pytest.approx(10 * pale["width"])
    assert (pale["opacity"], full["opacity"]) == (0.45, 1)
    assert words(figure) == ["5.5 s (0.5 statistics)", "4.5 s (0.5 statistics)"]
    assert durations.time(one_group(finished("none")), series([group])) is None


def test_accuracies_have_standard_errors_and_the_dense_model() -> None:
    dense, sinq = finished("none"), finished("sinq")
    for row, value in ((dense, 0.6), (sinq, 0.55)):
        row["metrics"]["zero_shot"] = {"tasks": {"piqa": {"acc": value, "acc_stderr": 0.02, "items": 100}}}
    group = one_group(dense, sinq)
    (figure,) = zero_shot.accuracies(group, series([group]))
    assert figure.title == "Zero-shot: piqa"
    assert [(row["value"], row["low"], row["high"]) for row in figure.rows] == [
        (0.6, pytest.approx(0.58), pytest.approx(0.62)), (0.55, pytest.approx(0.53), pytest.approx(0.57)),
    ]  # fmt: skip
    (level,) = [item for item in marks(figure, "rule") if "x2" not in item]
    symbols = marks(figure, "symbol")
    assert level["x"] == dict(zip(ids(symbols), [s["x"] for s in symbols], strict=True))["none4t"]


@pytest.mark.parametrize("count", [1, MOST, MOST + 5])
def test_the_first_runs_that_are_shown_are_drawn_and_all_are_counted(count: int) -> None:
    rows = []
    for number in range(count):
        row = finished("sinq") | {"run_id": f"r{number:03}"}
        row["options"]["method"]["number"] = number
        row["identity"]["method"]["number"] = number
        rows.append(row)
    group = one_group(*rows)
    figure = durations.time(group, series([group]))
    assert figure is not None
    assert len(marks(figure, "rect")) == 2 * min(count, MOST)
    assert (f"At most {MOST} of the {count} runs" in figure.note) == (count > MOST)
    odd = [row["run"] for row in figure.rows][1::2]
    assert len(marks(figure, "rect", lambda row: row["run"] in odd)) == 2 * min(len(odd), MOST)
