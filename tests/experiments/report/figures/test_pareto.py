"""Quality over cost: the rows' numbers, the front, the ends of the axis, levels and intervals, as drawn."""

from math import exp, nan
from typing import Any

import numpy as np
import pytest

from experiments.common.intervals import mean_interval
from experiments.report.comparable import groups
from experiments.report.figure import Figure
from experiments.report.figures import pareto
from experiments.report.figures.series import series
from experiments.results.record import Row
from tests.experiments.report.scene import ids, marks, words
from tests.experiments.rows import HARD, SHIFTS, finished


def drawn(*rows: Row) -> dict[str, Figure]:
    (group,) = groups(list(rows))
    return {figure.key: figure for figure in pareto.figures(group, series([group]))}


def measured(run_id: str, bits: float, perplexity: float, **options: Any) -> Row:
    row = finished("rtn", **options) | {"run_id": run_id}
    row["options"]["method"]["number"] = run_id  # one of a kind, so that its name is
    row["metrics"]["size"]["bits_per_weight"] = bits
    row["metrics"]["perplexity"]["value"] = perplexity
    return row


def exact(row: Row, values: list[float]) -> Row:
    row["metrics"]["perplexity"]["divergence"] = {"kl": float(np.mean(values))}
    row["samples"]["perplexity"]["window_divergence"] = values
    return row


def test_rows_have_the_runs_numbers() -> None:
    found = drawn(finished("none"), finished("sinq"), finished("rtn", 3))
    assert list(found) == ["pareto_bits", "pareto_bytes", "pareto_decode", "kl_bits", "kl_bytes", "kl_decode"]
    rows = {row["run"]: row for row in found["pareto_bytes"].rows if "run" in row}
    value = finished("rtn", 3)["metrics"]["perplexity"]["value"]
    assert (rows["rtn3t"]["x"], rows["rtn3t"]["y"]) == (pytest.approx(30), value)
    assert {row["x"] for row in found["kl_decode"].rows if "run" in row} == {1.5, 2.0}
    assert {(row["left"], row["right"]) for row in found["pareto_decode"].rows if "run" in row} == {
        (1.5, 1.875), (2.0, 2.5),
    }  # fmt: skip
    assert "Level whiskers" in found["pareto_decode"].note
    assert "Level whiskers" not in found["pareto_bits"].note


def test_a_perplexity_has_the_paired_interval_of_its_ratio_to_the_dense_model() -> None:
    dense, rtn = finished("none"), finished("rtn")
    (row,) = [row for row in drawn(dense, rtn)["pareto_bits"].rows if "run" in row]
    noise = np.random.default_rng(len("rtn") + 4).normal(0, 0.005, len(HARD))
    low, high = mean_interval(SHIFTS["rtn"] + noise) or (nan, nan)
    value = exp(HARD.mean())
    assert (row["low"], row["high"]) == pytest.approx((value * exp(low), value * exp(high)))
    assert row["low"] < row["y"] < row["high"]
    (alone,) = drawn(rtn)["pareto_bits"].rows
    assert (alone["low"], alone["high"]) == (None, None)


def test_a_divergence_has_the_interval_of_its_mean_and_is_the_one_that_more_runs_have() -> None:
    values = np.random.default_rng(0).gamma(2.0, 0.1, 20).tolist()
    sinq, rtn, hqq = exact(finished("sinq"), values), exact(finished("rtn"), values), finished("hqq")
    bound = drawn(finished("none"), sinq, finished("rtn"), hqq)["kl_bits"]
    assert bound.title.startswith("Divergence (lower bound)")
    assert [row["y"] for row in bound.rows if "run" in row] == [0.1, 0.1, 0.1]
    del hqq["metrics"]["perplexity"]["kl"]
    figure = drawn(finished("none"), sinq, rtn, hqq)["kl_bits"]
    assert {row["run"]: row["y"] for row in figure.rows if "run" in row} == {
        "sinq4t": np.mean(values), "rtn4t": np.mean(values),
    }  # fmt: skip
    assert next((row["low"], row["high"]) for row in figure.rows if "run" in row) == pytest.approx(
        mean_interval(np.array(values))
    )
    assert "Not drawn: hqq 4-bit g64" in figure.note


@pytest.mark.parametrize("key", ["pareto_bits", "pareto_decode"])
def test_the_front_is_what_no_other_run_beats(key: str) -> None:
    random = np.random.default_rng(0)
    sizes, values = random.integers(2, 9, 40), random.integers(20, 60, 40)
    rows = [measured(f"r{n}", float(x), float(y)) for n, (x, y) in enumerate(zip(sizes, values, strict=True))]
    for row, x in zip(rows, sizes, strict=True):
        row["metrics"]["latency"]["decode"]["ratio"] = float(x)
        row["samples"]["latency"]["seconds"]["decode"] = {}
    figure = drawn(*rows)[key]
    sign = -1 if key == "pareto_decode" else 1
    for kept in (set(range(40)), set(range(0, 40, 3))):
        points = {(sign * int(sizes[n]), int(values[n])) for n in kept}
        unbeaten = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
        assert on_front(figure, {f"r{n}" for n in kept}, sign) == unbeaten


def on_front(figure: Figure, kept: set[str], sign: int) -> set[tuple[int, int]]:
    """Return the runs at the corners of the front, as it is drawn for some of the runs."""
    symbols = marks(figure, "symbol", lambda row: row["run"] in kept)
    numbers = {row["run"]: (sign * int(row["x"]), int(row["y"])) for row in figure.rows if "run" in row}
    at = {(item["x"], item["y"]): numbers[run] for item, run in zip(symbols, ids(symbols), strict=True)}
    front = [
        item
        for item in marks(figure, "line", lambda row: row["run"] in kept)
        if item.get("interpolate", "").startswith("step")
    ]
    return {at[item["x"], item["y"]] for item in front}


def test_a_perplexity_that_is_no_number_is_said_and_not_drawn() -> None:
    figure = drawn(finished("none"), finished("sinq"), measured("broken", 3.5, float("inf")))["pareto_bits"]
    assert [row["run"] for row in figure.rows if "run" in row] == ["sinq4t"]
    assert "Not drawn: rtn 4-bit g64" in figure.note


def test_a_run_far_above_all_others_does_not_flatten_the_chart_and_is_not_lost() -> None:
    far = measured("far", 2.5, 1e6)
    dense, sinq, rtn = finished("none"), finished("sinq"), finished("rtn")
    figure = drawn(dense, sinq, rtn, far)["pareto_bits"]
    assert "above 30 times the lowest" in figure.note
    assert "↑ 1,000,000" in words(figure)
    heights = {run: item["y"] for item, run in pair(figure)}
    low, high, top = heights["sinq4t"], heights["rtn4t"], heights["far"]
    values = [row["metrics"]["perplexity"]["value"] for row in (sinq, rtn)]
    per_factor = (low - high) / np.log(values[1] / values[0])
    assert low - top == pytest.approx(per_factor * np.log(30), rel=0.01)
    without = pair(figure, lambda row: row["run"] != "far")
    assert not [word for word in words(figure, lambda row: row["run"] != "far") if "↑" in word]
    assert {item["y"] for item, _ in without} != {low, high}  # the axis ends at what is shown


def pair(figure: Figure, keep: Any = lambda _: True) -> list[tuple[dict[str, Any], str]]:
    items = marks(figure, "symbol", keep)
    return list(zip(items, ids(items), strict=True))


def test_levels_are_lines_or_words_on_the_edge_and_stay_when_runs_are_filtered_away() -> None:
    floor = exact(finished("rtn") | {"run_id": "bf16", "name": "bf16"}, [1e-4] * 20)
    floor["identity"]["method"] = {"name": "cast"}
    runs = [exact(finished(name), [0.2] * 20) for name in ("sinq", "hqq")]
    found = drawn(finished("none"), floor, *runs)
    perplexity, kl = found["pareto_bits"], found["kl_bits"]
    assert [row["of"] for row in perplexity.rows if "run" not in row] == ["none4t", "bf16"]
    assert "bf16" not in {row.get("run") for row in perplexity.rows}
    dense = finished("none")["metrics"]["perplexity"]["value"]
    assert [word for word in words(perplexity) if "dense" in word] == [f"dense {dense:.4g}"]
    assert [word for word in words(kl) if "noise floor" in word] == ["↓ bf16 (noise floor) 0.0001"]
    assert [word for word in words(kl, lambda row: row["run"] == "sinq4t") if "noise" in word]
    near = exact(floor, [0.1] * 20)
    near["samples"]["perplexity"]["window_divergence"] = [0.1] * 20
    assert "bf16 (noise floor) 0.1" in words(drawn(finished("none"), near, *runs)["kl_bits"])


def test_runs_that_differ_in_bits_alone_are_joined_and_marks_have_the_bits() -> None:
    rows = [finished("sinq"), finished("sinq", 3), finished("sinq", group_size=32), finished("none")]
    figure = drawn(*rows)["pareto_bits"]
    families = {row["run"]: row["family"] for row in figure.rows if "run" in row}
    assert families["sinq4t"] == families["sinq3t"] != families["sinq4t32"]
    assert sorted(word for word in words(figure) if len(word) == 1) == ["3", "4", "4"]


def test_a_picked_run_has_a_ring() -> None:
    figure = drawn(finished("none"), finished("sinq"), finished("rtn"))["pareto_bits"]
    assert len(marks(figure, "symbol")) == 2
    params = [
        each | {"value": "rtn4t"} if each["name"] == "picked" else each for each in figure.spec["params"]
    ]
    picked = Figure(figure.key, figure.title, {**figure.spec, "params": params}, figure.rows)
    where = {run: (item["x"], item["y"]) for item, run in pair(figure)}
    *_, ring = marks(picked, "symbol")
    assert (ring["x"], ring["y"]) == where["rtn4t"]
