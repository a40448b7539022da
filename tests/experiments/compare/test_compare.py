"""Comparisons of rows: verdicts, counterparts, rows that are not comparable."""

import copy
from typing import Any

import numpy as np
import pytest

from experiments.common.intervals import mean_interval
from experiments.compare import counterpart
from experiments.compare.paired import MARKS, Comparison, Verdict, compare
from experiments.results import record
from experiments.results.record import Row

NOISE = np.random.default_rng(1)
HARD = 3 + NOISE.normal(0, 0.5, 20)  # what makes a window hard is hard for everyone


def row(
    name: str = "sinq", nll: Any = HARD, bits: int | None = 4, run_id: str | None = None, **method: Any
) -> Row:
    """A finished row, as the pipeline records it."""
    grid = {} if bits is None else {"grid": {"bits": bits, "group_size": 64}}
    nll = [float(value) for value in nll]
    return {
        "run_id": run_id or f"id-{name}-{bits}",
        "name": name if bits is None else f"{name} {bits}-bit g64",
        "choices": {"method": name},
        "status": record.FINISHED,
        "identity": {
            "model": {"name": "m", "sha256": "1", "dtype": "float32"},
            "device": "cpu",
            "method": {**grid, **method},
        },
        "options": {"method": {**grid, **method}},
        "metrics": {
            "perplexity": {"value": 1.0, "windows": len(nll), "seqlen": 2048, "kl": 0.02, "flip_rate": 0.1}
        },
        "samples": {"perplexity": {"window_nll": nll}},
        "protocol": {
            "fingerprint": "f",
            "tokens": 9,
            "tokenizer": "t",
            "bos": "none",
            "dtype": "float32",
            "model_commit": None,
        },
    }


def test_pairs_show_what_means_hide() -> None:
    """A difference of a hundredth of the spread between windows."""
    changed = HARD + 0.005 + np.random.default_rng(3).normal(0, 0.002, 20)
    comparison = compare(row("rtn", changed), row())
    assert comparison.verdict is Verdict.worse
    assert comparison.delta_nll == pytest.approx(np.mean(changed) - np.mean(HARD))
    assert comparison.interval == mean_interval(changed - HARD)
    turned = compare(row(), row("rtn", changed))
    assert turned.verdict is Verdict.better
    assert turned.interval == pytest.approx(tuple(-end for end in comparison.interval[::-1]))  # type: ignore[index]


def test_equal_rows_are_not_distinguishable() -> None:
    same = compare(row(), row())
    assert same == Comparison(0.0, (0.0, 0.0), 20)
    assert same.verdict is Verdict.not_distinguishable
    noise = np.random.default_rng(4).normal(0, 0.1, 20)
    assert compare(row("rtn", HARD + noise - noise.mean()), row()).verdict is Verdict.not_distinguishable


@pytest.mark.parametrize("shift", [np.linspace(0.1, 0.11, 20), np.zeros(20), np.linspace(-0.1, 0.1, 20)])
def test_a_handful_of_windows_has_no_interval(shift: Any) -> None:
    """Whether or not the windows agree: no verdict but that there are too few."""
    for count in (1, 5):
        few = compare(row("rtn", (HARD + shift)[:count]), row(nll=HARD[:count]))
        assert (few.interval, few.windows) == (None, count)
        assert few.verdict is Verdict.too_few_windows
    assert compare(row("rtn", (HARD + shift)[:6]), row(nll=HARD[:6])).interval is not None


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (None, Verdict.too_few_windows),
        ((-0.1, 0.2), Verdict.not_distinguishable),
        ((0.0, 0.2), Verdict.not_distinguishable),
        ((0.1, 0.2), Verdict.worse),
        ((-0.2, -0.1), Verdict.better),
    ],
)
def test_the_interval_decides(interval: tuple[float, float] | None, verdict: Verdict) -> None:
    assert Comparison(0.05, interval, 20).verdict is verdict
    assert len({each.value for each in Verdict}) == len({*MARKS.values()}) + 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("protocol", "fingerprint"), "g", "text is f and g"),
        (("protocol", "tokens"), 8, "number of tokens is 9 and 8"),
        (("protocol", "tokenizer"), "u", "tokenizer is t and u"),
        (("protocol", "bos"), "added once", "bos is none and added once"),
        (("protocol", "dtype"), "bfloat16", "dtype is float32 and bfloat16"),
        (("protocol", "model_commit"), "c", "commit is None and c"),
        (("identity", "device"), "cuda", "device is cpu and cuda"),
        (("identity", "model", "name"), "n", "model is .* and "),
        (("metrics", "perplexity", "seqlen"), 512, "seqlen is 2048 and 512"),
        (("metrics", "perplexity", "windows"), 19, "windows is 20 and 19"),
        (("samples",), {}, "id-rtn-4 has no finite perplexity"),
        (("samples", "perplexity", "window_nll"), [float("nan")] * 20, "id-rtn-4 has no finite perplexity"),
    ],
)
def test_rows_of_different_protocols_are_refused(path: tuple[str, ...], value: Any, message: str) -> None:
    other = copy.deepcopy(row("rtn"))
    inside = other
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    with pytest.raises(ValueError, match=f"rows id-sinq-4 and id-rtn-4 cannot be compared: {message}"):
        compare(row(), other)


def test_methods_are_compared_at_their_own_bits() -> None:
    rows = [
        row("sinq", HARD, 4),
        row("sinq", HARD + 0.3, 3),
        row("rtn", HARD + 0.1, 4),
        row("rtn", HARD + 0.2, 3),
        row("none", HARD, None),
    ]
    found = counterpart.compared(rows, "sinq").comparisons
    assert [None if c is None else round(c.delta_nll, 6) for c in found] == [None, None, 0.1, -0.1, None]


def test_a_wrapped_method_has_the_bits_of_the_inner_one() -> None:
    wrapped = row("awq", HARD + 0.2, None, inner={"grid": {"bits": 3, "group_size": 64}})
    (comparison, *_) = counterpart.compared(
        [wrapped, row("sinq", HARD, 4), row("sinq", HARD + 0.1, 3)], "sinq"
    ).comparisons
    assert comparison is not None
    assert comparison.delta_nll == pytest.approx(0.1)


def test_a_method_that_chooses_bits_is_matched_by_no_others_bits() -> None:
    mixed = row("mixed", HARD + 0.2, None, inner={"grid": {"bits": 4, "group_size": 64}})
    assert counterpart.compared([row("sinq", HARD, 4), mixed], "sinq").comparisons[1] is not None
    mixed["options"]["method"]["bits"] = [2, 3, 4]
    assert counterpart.compared([row("sinq", HARD, 4), mixed], "sinq").comparisons == (None, None)


@pytest.mark.parametrize("name", ["sinq 4-bit g64", "id-sinq-4"])
def test_a_row_named_itself_stands_beside_all_others(name: str) -> None:
    rows = [row("sinq", HARD, 4), row("rtn", HARD + 0.2, 3), row("none", HARD - 0.1, None)]
    found = counterpart.compared(rows, name).comparisons
    assert [None if c is None else round(c.delta_nll, 6) for c in found] == [None, 0.2, -0.1]


def test_the_dense_model_has_no_bits_to_match() -> None:
    rows = [row("sinq", HARD + 0.1, 4), row("none", HARD, None)]
    assert [c is not None for c in counterpart.compared(rows, "none").comparisons] == [True, False]


def test_rows_of_another_protocol_and_failed_ones_are_passed_over() -> None:
    elsewhere = row("rtn", HARD[:10], 4)
    failed = {**row("rtn", run_id="broken"), "samples": {}, "metrics": {}, "status": record.FAILED}
    assert counterpart.compared([row(), elsewhere, failed], "sinq").comparisons == (None, None, None)


def dated(made: Row, date: str) -> Row:
    return made | {"provenance": {"finished_at": f"2026-01-{date}T00:00:00+00:00"}}


def test_the_newest_of_equivalent_rows_is_taken_and_said_once() -> None:
    """Equivalent rows differ in what else was measured, or in the version of the method."""
    old, new = (
        dated(row("sinq", HARD, run_id="old"), "01"),
        dated(row("sinq", HARD - 0.5, run_id="new"), "02"),
    )
    old["identity"]["evaluation"] = {"latency": {"name": "latency"}}
    old["identity"]["method"] |= {"version": 1}
    new["identity"]["method"] |= {"version": 2}
    rows = [new, old, row("rtn", HARD + 0.1), row("rtn", HARD + 0.2, run_id="another")]
    for shuffled in (rows, rows[::-1]):
        found = counterpart.compared(shuffled, "sinq")
        deltas = {
            made["run_id"]: round(c.delta_nll, 6)
            for made, c in zip(shuffled, found.comparisons, strict=True)
            if c
        }
        assert deltas == {"id-rtn-4": 0.6, "another": 0.7}
        assert found.notes == ("--against sinq: 2 equivalent rows; the newest is taken, new (for 2 rows)",)


def test_rows_that_were_treated_differently_are_listed_and_cost_only_their_counterparts() -> None:
    rows = [
        row(iterations=16, run_id="a"),
        row(iterations=4, run_id="b"),
        row("sinq", HARD, 3),
        row("rtn", HARD + 0.1),
        row("rtn", HARD + 0.1, 3),
    ]
    found = counterpart.compared(rows, "sinq")
    assert [c is not None for c in found.comparisons] == [False, False, False, False, True]
    (note,) = found.notes
    assert note.splitlines() == [
        "--against sinq fits several rows, so no comparison; give one of these ids:",
        "  a  sinq 4-bit g64 iterations=16",
        "  b  sinq 4-bit g64 iterations=4",
    ]
    assert [c is not None for c in counterpart.compared(rows, "a").comparisons] == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_a_row_is_compared_with_the_one_treated_as_itself() -> None:
    """Of two SINQ rows, the one with the same layers left dense; calibration is no obstacle."""
    few = {"exclude": ["lm_head", "down_proj"]}
    rows = [row("sinq", HARD, run_id="all"), row("sinq", HARD - 0.2, run_id="few")]
    rows += [
        row("rtn", HARD + 0.1, run_id="r"),
        row("rtn", HARD + 0.1, run_id="s"),
        row("awq", HARD, run_id="t"),
    ]
    for made in (rows[1], rows[3]):
        made["identity"]["layers"] = few
    rows[4]["identity"]["calibration"] = {"name": "text", "text": {"name": "c4"}}
    found = counterpart.compared(rows, "sinq")
    assert [None if c is None else round(c.delta_nll, 6) for c in found.comparisons] == [
        None,
        None,
        0.1,
        0.3,
        0,
    ]
    assert found.notes == ()


def test_a_name_nobody_has_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(
        ValueError, match="--against hqq names no row; give a run id or one of: rtn, rtn 4-bit g64"
    ):
        counterpart.compared([row("rtn")], "hqq")


def test_the_table_shows_them() -> None:
    found = counterpart.compared([row(), row("rtn", HARD + 0.1)], "sinq")
    shown = {column.heading: column.cells for column in found.columns()}
    assert shown["ΔNLL to\nsinq"] == ("–", "+0.1000")
    assert shown["95 %"] == ("–", "+0.1000 … +0.1000")
    assert shown["verdict"] == ("–", "worse")
    assert found.values()["verdict"] == [None, "worse"]
    few = counterpart.compared([row(nll=HARD[:5]), row("rtn", HARD[:5] + 0.1)], "sinq")
    shown = {column.heading: column.cells for column in few.columns()}
    assert shown["95 %"] == ("–", "–")
    assert shown["verdict"] == ("–", "too few windows")
    assert few.values()["low"] == [None, None]


def test_rounded_activations_and_keys_are_compared_with_their_like() -> None:
    """The dense model with rounded keys is not the dense model, and W4A4 of one method not W4A16."""
    dense, sinq, rtn = row("none", HARD, None), row("sinq", HARD + 0.1, 4), row("rtn", HARD + 0.2, 4)
    four = {"keys": {"bits": 4}, "values": {"bits": 4}}
    keys = rounded(row("none", HARD + 0.4, None), "kv", four)
    w4a4 = [
        rounded(row(name, HARD + shift, 4), "inputs", {"bits": 4})
        for name, shift in (("sinq", 1), ("rtn", 2))
    ]
    rows = [dense, keys, sinq, rtn, *w4a4]
    deltas = [c and round(c.delta_nll, 6) for c in counterpart.compared(rows, dense["name"]).comparisons]
    assert deltas == [None, 0.4, 0.1, 0.2, 1.0, 2.0]
    to_rtn = counterpart.compared(rows, "rtn").comparisons
    assert [c and round(c.delta_nll, 6) for c in to_rtn] == [None, None, -0.1, None, -1.0, None]


def rounded(plain: Row, part: str, options: dict[str, Any]) -> Row:
    """The row with a method around its own."""
    outer = {"name": "around", "inner": plain["options"]["method"], part: options}
    name, run_id = f"{plain['name']} {part}", plain["run_id"] + part
    return {**plain, "run_id": run_id, "name": name, "options": {**plain["options"], "method": outer}}
