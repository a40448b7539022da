"""Columns of tables: one format for the numbers of a column, and zero-shot tasks by name."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.console import console
from experiments.compare import difference
from experiments.report import page
from experiments.results import columns, listing, overview, record
from experiments.results.columns import HUGE, STYLES
from experiments.track.content import grouped
from tests.experiments.rows import finished, store

PLAIN = [style for style in STYLES if style != "speed"]


@given(st.lists(st.floats(1e-3, HUGE / 2), min_size=1), st.sampled_from(PLAIN))
def test_numbers_of_a_column_have_one_format(values: list[float], style: str) -> None:
    words = [word.rstrip("%k") for word in columns.words(values, style)]
    usual = [word for word in words if "e" not in word]
    assert len({len(word.partition(".")[2]) for word in usual}) <= 1
    decimals = STYLES[style].decimals(values)
    for value, word in zip(values, words, strict=True):
        tolerance = 0.5 * 10.0**-decimals if "e" not in word else 0.01 * value * STYLES[style].factor
        assert float(word) == pytest.approx(value * STYLES[style].factor, abs=tolerance * 1.001)


@pytest.mark.parametrize(
    ("style", "values", "words"),
    [
        ("significant", [0.17, 0.869, 21.6], ["0.170", "0.869", "21.600"]),
        ("significant", [0.00021, 0.5], ["0.00021", "0.50000"]),
        ("seconds", [0.0054558, 3.0], ["0.0055", "3.0000"]),
        ("MB", [109_777_536, 27_000_000], ["109.8", "27.0"]),
        ("MB", [329_208, 1_040_128], ["0.329", "1.040"]),
        ("number", [632_320.0, 26.485], ["632320.000", "26.485"]),
        ("number", [math.inf, math.nan, 3.0, 0.0], ["inf", "nan", "3.000", "0.000"]),
        ("number", [2e13, 5.0], ["2.00e+13", "5.000"]),
        ("percent", [0.266, 1.0, None], ["26.6%", "100.0%", "–"]),
        (
            "speed",
            [{"dense_tokens_per_second": 10.0}, {"tokens_per_second": 123.0, "ratio": 2}],
            ["–", "2.00"],
        ),
    ],
)
def test_the_smallest_number_decides_the_digits(style: str, values: list[float], words: list[str]) -> None:
    assert columns.words(values, style) == words


def asked(method: str, accuracy: float) -> record.Row:
    """A row that was asked two tasks and a group of two more."""
    row = finished(method)
    task = {"acc": accuracy, "acc_stderr": 0.1, "acc_norm": 0.9, "items": 20, "version": "1.0"}
    row["metrics"]["zero_shot"] = {
        "tasks": {
            "piqa_local": task,
            "lambada": {"perplexity": 7.5, "perplexity_stderr": 0.5, "items": 20},
            "mmlu": {"acc": 0.25, "tasks": ["mmlu_law", "mmlu_art"]},
            "mmlu_law": {"acc": 0.2},
            "mmlu_art": {"acc": 0.3},
        },
        "limit": 20,
    }
    return row


def test_zero_shot_accuracy_stands_everywhere_under_the_tasks_name(tmp_path: Path) -> None:
    rows = store(tmp_path, asked("none", 0.75), asked("sinq", 0.65))
    with console.capture() as captured:
        overview.show(rows, tmp_path, "title")
    for text in (captured.get(), page.html(page.collect(tmp_path))):
        assert "piqa_local" in text
        assert "75.0%" in text
        assert "65.0%" in text
        assert "mmlu_law" not in text  # the group stands for it
    listed = {column.heading: column.cells for column in listing.chosen(rows, None)}
    assert listed["piqa_local\nacc"] == ("75.0%", "65.0%")
    assert listed["lambada\nperplexity"] == ("7.500", "7.500")
    frame = record.load(tmp_path)
    assert dict(zip(frame["method"], frame["piqa_local"], strict=True)) == {"none": 0.75, "sinq": 0.65}
    assert set(frame["mmlu"]) == {0.25}
    assert grouped(rows[1])["accuracy/piqa_local"] == 0.65
    (changed,) = [each for each in difference.metrics(*rows) if each.name == "zero_shot.tasks.piqa_local.acc"]
    assert (changed.one, changed.other) == (0.75, 0.65)
    figure = next(each for each in page.collect(tmp_path).sections[0].figures if each.key == "zero_shot_1")
    assert figure.title == "Zero-shot: piqa_local"


def test_a_column_that_no_row_has_is_left_out() -> None:
    row = finished()
    del row["metrics"]["latency"]
    headings = [column.heading for column in overview.table([row])]
    assert "decode\ntok/s" not in headings
    assert "peak\nMB" not in headings
    assert "ppl" in headings
