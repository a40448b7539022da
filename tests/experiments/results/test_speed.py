"""Speeds: a table's numbers multiply out, whatever the machine did between two runs."""

import re
from pathlib import Path

import pytest

from experiments.common.console import console
from experiments.report.comparable import groups
from experiments.report.run_table import table as page_table
from experiments.results import columns
from experiments.results.overview import facts, show
from experiments.results.record import Row
from experiments.results.speed import Pair, pair, words
from tests.experiments.rows import finished


def timed(dense: list[float], compressed: list[float], tokens: int = 8) -> Row:
    """A row of rounds of so many seconds; its numbers are the pipeline's, ratios of medians."""
    row, middle = finished("rtn"), len(dense) // 2
    speeds = [tokens / sorted(times)[middle] for times in (dense, compressed)]
    for phase in ("prefill", "decode"):
        row["metrics"]["latency"][phase] = {
            "tokens": float(tokens),
            "dense_tokens_per_second": speeds[0],
            "tokens_per_second": speeds[1],
            "ratio": speeds[1] / speeds[0],
        }
        row["samples"]["latency"]["seconds"][phase] = {"dense": dense, "compressed": compressed}
    return row


def test_the_pair_is_of_one_row() -> None:
    row = timed([1.0, 2.0, 4.0], [2.0, 1.0, 4.0])
    assert pair(row, "decode") == Pair(4.0, 4.0, 1.0, (0.5, 2.0), 3)
    assert pair(finished("none"), "decode") is None
    del row["metrics"]["latency"]
    assert pair(row, "decode") is None


@pytest.mark.parametrize("rounds", [0, 1])
def test_one_round_has_no_spread(rounds: int) -> None:
    row = timed([1.0], [2.0])
    if rounds == 0:
        row["samples"] = {}
    found = pair(row, "prefill")
    assert found is not None
    assert (found.spread, found.rounds) == (None, rounds)
    assert words(found) == "8 → 4\n0.50×"
    assert "spread" not in facts(row)


def test_a_ratio_lies_within_the_spread_and_the_speeds_multiply_out() -> None:
    row = timed([0.9, 1.3, 1.0], [0.5, 0.4, 0.6])
    (metric,) = [each for each in columns.METRICS if each.key == "decode"]
    (shown,) = columns.cells([row], metric)
    dense, compressed, ratio, low, high = map(float, re.findall(r"[\d.]+", shown))
    assert dense * ratio == pytest.approx(compressed, rel=0.01)
    assert low <= ratio <= high


def test_a_dense_row_from_another_time_does_not_look_like_the_other_half() -> None:
    """The machine was busy during the dense run: its speed is marked, and no ratio refers to it."""
    dense, row = finished("none"), timed([1.0, 1.0, 1.1], [0.5, 0.5, 0.6])
    dense["metrics"]["latency"]["decode"]["dense_tokens_per_second"] = 16.0  # as fast as the compressed one
    with console.capture() as captured:
        show([dense, row], Path("results"), "t")
    text = captured.get()
    assert "16 alone" in text
    assert "8 → 16" in text
    assert "2.00× (1.83–2.00)" in text
    assert "spread of 3 rounds" in facts(row)
    (group,) = groups([dense, row])
    cells = [record.cells["decode"] for record in page_table([group], {}).records]
    assert [(each.words, each.sort) for each in cells] == [
        ("16 alone", None),
        ("8 → 16, 2.00× (1.83–2.00)", 2.0),
    ]
