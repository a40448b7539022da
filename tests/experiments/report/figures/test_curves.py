"""Curves: percentiles and kinds of positions of the divergence, and trainings, from rows to what is drawn."""

import itertools
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from experiments.report.comparable import groups
from experiments.report.figure import Figure
from experiments.report.figures import divergence, trainings
from experiments.report.figures.curves import MOST
from experiments.report.figures.series import series
from experiments.results.record import Row
from tests.experiments.checkpoints import course
from tests.experiments.report.scene import ids, marks, words
from tests.experiments.rows import finished

NAMES = ("kl_median", "kl_p90", "kl_p95", "kl_p99", "kl_p99_9", "kl_max")


def diverged(method: str, first: float, bits: int = 4, **changed: float) -> Row:
    row = finished(method, bits)
    quantiles = {name: first * 10**n for n, name in enumerate(NAMES)} | changed
    row["metrics"]["perplexity"]["divergence"] = {"kl": first, **quantiles}
    row["samples"]["perplexity"]["by_confidence"] = [
        {"from": 0.0, "to": 0.5, "positions": 3, "kl": 4 * first},
        {"from": 0.5, "to": 1.0, "positions": 9, "kl": first},
    ]
    return row


def drawn(*rows: Row) -> dict[str, Figure]:
    (group,) = groups(list(rows))
    return {figure.key: figure for figure in divergence.figures(group, series([group]))}


def test_percentiles_rise_from_the_median_to_the_maximum() -> None:
    figure = drawn(finished("none"), diverged("sinq", 0.001), diverged("rtn", 0.002))["percentiles"]
    row = next(row for row in figure.rows if row["run"] == "sinq4t")
    assert row["x"] == ["median", "90 %", "95 %", "99 %", "99.9 %", "max."]
    assert row["y"] == pytest.approx([0.001, 0.01, 0.1, 1, 10, 100])
    symbols = [item for item in marks(figure, "symbol") if "sinq4t" in ids([item])]
    heights = [item["y"] for item in symbols]
    steps = [above - below for above, below in itertools.pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 5)  # powers of ten: even steps on the logarithmic axis
    assert steps[0] > 0


def test_a_divergence_of_zero_is_a_gap_that_the_note_explains() -> None:
    figure = drawn(diverged("sinq", 0.001, kl_median=0.0))["percentiles"]
    assert figure.rows[0]["y"][0] is None
    assert len(marks(figure, "symbol")) == 5
    assert "A divergence of 0" in figure.note


def test_the_noise_floor_is_a_reference_of_the_percentiles_and_is_left_out_of_buckets() -> None:
    floor = diverged("rtn", 1e-6) | {"run_id": "bf16", "name": "bf16"}
    floor["identity"]["method"] = {"name": "cast"}
    found = drawn(finished("none"), floor, diverged("sinq", 0.01))
    (reference,) = [row for row in found["percentiles"].rows if "run" not in row]
    assert reference["name"] == "bf16 (noise floor)"
    assert "bf16 (noise floor)" in words(found["percentiles"], lambda _: False)
    assert [row["run"] for row in found["by_confidence"].rows] == ["sinq4t"]
    assert "noise floor is left out" in found["by_confidence"].note


def test_buckets_are_named_by_their_ends() -> None:
    figure = drawn(diverged("sinq", 0.01))["by_confidence"]
    (row,) = figure.rows
    assert (row["x"], row["y"]) == (["0–0.5", "0.5–1"], [0.04, 0.01])
    assert "by_position" not in drawn(diverged("sinq", 0.01))


def test_the_first_curves_that_are_shown_are_drawn() -> None:
    rows = []
    for number in range(MOST + 2):
        row = diverged("sinq", 0.01) | {"run_id": f"r{number:02}"}
        row["options"]["method"]["number"] = row["identity"]["method"]["number"] = number
        rows.append(row)
    figure = drawn(*rows)["percentiles"]
    runs = [row["run"] for row in figure.rows]
    assert set(ids(marks(figure, "symbol"))) == set(runs[:MOST])
    assert set(ids(marks(figure, "symbol", lambda row: row["run"] != runs[0]))) == set(runs[1 : MOST + 1])
    assert f"At most {MOST} of the {MOST + 2} runs" in figure.note
    turned = replace(figure, rows=({"name": "floor", **figure.rows[0], "run": None}, *figure.rows[::-1]))
    assert set(ids(marks(turned, "symbol"))) == set(runs[2:])  # the order of the table, references apart


def test_checkpoints_become_curves_of_what_was_measured() -> None:
    rows = course({0: 2.5, 10: 0.0, 60: 1.3}) + course({0: 2.5, 10: 2.0, 60: 1.0}, rate=0.2)
    (figure,) = trainings.over_steps(rows)
    curves: dict[str, list[Any]] = {}
    for row in figure.rows:
        curves.setdefault(row["name"], []).append((*row["x"], *row["y"]))
    assert curves == {
        "decoder1, learning rate 0.1": [(0, 2.5), (10, 0.0), (60, 1.3)],
        "decoder1, learning rate 0.2": [(0, 2.5), (10, 2.0), (60, 1.0)],
    }
    assert {row["run"] for row in figure.rows} == {row["run_id"] for row in rows}
    first, second, third = list(marks(figure, "symbol"))[:3]
    assert (second["x"] - first["x"]) * 5 == pytest.approx(third["x"] - second["x"])  # a linear axis
    assert second["y"] > third["y"] > first["y"]  # zero is the lowest, and shown
    assert trainings.over_steps([finished("none")]) == []


def test_losses_are_means_of_neighbouring_steps() -> None:
    loss = [float(step) for step in range(95)]
    found = trainings.thinned(loss)
    assert list(found)[:2] == [3, 6]
    assert list(found)[-1] == 95
    assert found[3] == 1.0
    assert found[95] == fmean([93.0, 94.0])
    assert trainings.thinned([1.0, 2.0]) == {1: 1.0, 2: 2.0}


def trained(*loss: float) -> Figure | None:
    row = finished("sinq")
    row["samples"] |= {"training": {"loss": list(loss)}}
    (group,) = groups([finished("none"), row])
    return trainings.losses(group, series([group]))


def test_a_group_has_the_losses_of_those_that_trained() -> None:
    assert trained() is None
    figure = trained(3.0, 2.0, 1.0)
    assert figure is not None
    assert [(row["x"], row["y"]) for row in figure.rows] == [([1, 2, 3], [3.0, 2.0, 1.0])]
    assert len(marks(figure, "symbol")) == 3


def test_a_long_curve_is_a_line_alone() -> None:
    figure = trained(*map(float, range(40)))
    assert figure is not None
    assert marks(figure, "symbol") == []
    assert len(marks(figure, "line")) == 40
