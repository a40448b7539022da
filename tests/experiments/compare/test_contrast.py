"""Two runs side by side: which are meant, and what their difference is, against numbers worked out here."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.aqlm import AQLM
from baselines.awq import AWQ
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.hadamard import Hadamard
from baselines.rtn import RTN
from experiments.common.console import console
from experiments.compare import __main__, difference, query
from experiments.results.record import Row
from sinq import SINQ, Grid, HalfQuadratic, Tuned
from sinq.common.named import described
from tests.experiments.rows import failed, finished, layers, store

ROWS = [
    finished("none"),
    finished("sinq"),
    finished("sinq", 3),
    finished("rtn"),
    finished("sinq", text="u"),
    failed(),
]


@pytest.mark.parametrize(
    ("words", "run_id"),
    [
        ("sinq3t", "sinq3t"),
        ("rtn", "rtn4t"),
        ("rtn 4-bit g64", "rtn4t"),
        ("method=sinq,bits=3", "sinq3t"),
        ("method=sinq,method.grid.bits=4,text=t", "sinq4t"),
        ("method=none", "none4t"),
    ],
)
def test_a_run_is_known_by_id_name_or_query(words: str, run_id: str) -> None:
    row, note = query.select(ROWS, words)
    assert (row["run_id"], note) == (run_id, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "method=sinq,bits=4",
            r"matches 2 runs; add an option to it, or give an id:"
            r"\n  sinq4t  sinq 4-bit g64, m on t\n  sinq4u  .*on u",
        ),
        ("method=awq", r"method=awq matches none of 5 finished runs; there are:\n  none4t"),
        ("bit=4", r"bit in bit=4 is nothing that a run was chosen by; there are: .*bits"),
        ("broken", "broken matches none"),
    ],
)
def test_what_means_no_run_or_several_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        query.select(ROWS, words)


def test_settings_are_what_differs_and_nothing_else() -> None:
    assert difference.changes(finished("sinq"), finished("sinq", 3)) == [("method.grid.bits", 4, 3)]
    assert difference.changes(finished(), finished()) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (RTN(Grid(4, 64)), SINQ(Grid(4, 64)), [("method.name", "rtn", "sinq")]),
        (RTN(Grid(4, 64)), SINQ(Grid(3, 64)), [("method.name", "rtn", "sinq"), ("method.grid.bits", 4, 3)]),
        (SINQ(), AWQ(RTN()), [("method.name", "sinq", "awq(rtn)")]),
        (AWQ(RTN(Grid(4, 64))), AWQ(SINQ(Grid(3, 64))), [
            ("method.name", "awq(rtn)", "awq(sinq)"), ("method.grid.bits", 4, 3),
        ]),
        (Dense(), SINQ(), [("method.name", "dense", "sinq")]),
        (Tuned(AQLM()), AQLM(), [("method.name", "tuned(aqlm)", "aqlm")]),
        (SINQ(), SINQ(refinement=HalfQuadratic(steps=3)), "refinement"),
        (GPTQ(RTN(), damping=0.1), GPTQ(RTN()), [("method.damping", 0.1, 0.01)]),
        (GPTQ(RTN()), Hadamard(GPTQ(RTN())), [("method.name", "gptq(rtn)", "hadamard(gptq(rtn))")]),
    ],
)  # fmt: skip
def test_options_of_different_classes_are_no_differences(one: Any, other: Any, expected: Any) -> None:
    rows = []
    for method in (one, other):
        row = finished()
        row["identity"]["method"] = described(method)
        row["options"]["method"] = described(method, defaults=True)
        rows.append(row)
    found = difference.changes(*rows)
    if expected == "refinement":
        ((path, before, after),) = found
        assert (path, before) == ("method.refinement", None)
        assert "steps=3" in after
    else:
        assert found == expected
    mirrored = [(path, after, before) for path, before, after in found]
    assert sorted(difference.changes(*rows[::-1])) == sorted(mirrored)


def test_a_part_that_one_row_has_not_is_named_once() -> None:
    one, other = finished(), finished()
    other["identity"]["calibration"] = {"name": "text", "version": 1, "text": {"name": "c4"}, "samples": 8}
    other["identity"]["evaluation"] = {"latency": {"name": "latency", "rounds": 3}}
    one["identity"]["evaluation"] = {}
    other["provenance"] |= {"finished_at": "2030-01-01", "packages": {"torch": "9"}}
    assert set(difference.changes(one, other)) == {
        ("evaluation.latency", None, "latency"), ("calibration", None, "c4"),
        ("provenance.packages", None, "torch=9"),
    }  # fmt: skip


def at(row: Row, date: str, **changes: Any) -> Row:
    """A copy of a row, finished at another time."""
    row = copy.deepcopy(row) | changes
    row["provenance"]["finished_at"] = f"2026-02-{date}T00:00:00+00:00"
    return row


def test_the_newest_of_equivalent_runs_is_taken() -> None:
    """Not of runs that differ in what was done, or in the windows that were read."""
    old, new = at(finished(), "01", run_id="old"), at(finished(), "03", run_id="new")
    new["identity"]["evaluation"] = {"perplexity": {}, "latency": {"rounds": 3}}
    row, note = query.select([old, new, finished("rtn")], "method=sinq")
    assert row is new
    assert note == "method=sinq: 2 equivalent runs match; the newest is taken, new"
    other = at(finished(tiling=2), "02", run_id="other")
    with pytest.raises(ValueError, match=r"matches 2 runs;.*\n  new  .*\n  other  .*tiling=2$"):
        query.select([old, new, other], "method=sinq")


def test_of_two_sides_those_that_can_be_compared_are_taken() -> None:
    """README's own sweeps: each method once with few windows and once with more."""
    rows = []
    for method in ("sinq", "rtn"):
        few, many = (
            at(finished(method), "01", run_id=f"{method}-few"),
            at(finished(method), "02", run_id=f"{method}-many"),
        )
        few["metrics"]["perplexity"]["windows"] = 10
        few["samples"]["perplexity"] = {"window_nll": few["samples"]["perplexity"]["window_nll"][:10]}
        rows += [few, many]
    one, other, notes = query.select_pair(rows, "method=sinq,bits=4", "rtn 4-bit g64")
    assert (one["run_id"], other["run_id"]) == ("sinq-many", "rtn-many")
    assert notes == [
        "method=sinq,bits=4: 2 runs match; the newest is taken, sinq-many",
        "rtn 4-bit g64: 2 runs match; the newest is taken, rtn-many",
    ]
    one, other, notes = query.select_pair(rows, "sinq-few", "method=rtn")
    assert (one["run_id"], other["run_id"]) == ("sinq-few", "rtn-few")
    with pytest.raises(ValueError, match="matches 3 runs"):
        query.select_pair([*rows, at(finished(tiling=2), "05", run_id="t")], "method=sinq", "method=rtn")


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ("method=sinq", {"sinq4t", "sinq3t", "sinq4u", "broken"}),
        ("bits=3", {"sinq3t"}),
        ("group_size=64,text=u", {"sinq4u"}),
        ("model=m,calibrated=false,method=rtn", {"rtn4t"}),
        ("status=failed", {"broken"}),
    ],
)
def test_queries_know_the_flat_columns(words: str, ids: set[str]) -> None:
    assert {row["run_id"] for row in query.matching(ROWS, words)} == ids


def test_metrics_are_subtracted_and_windows_give_the_interval() -> None:
    one, other = finished("sinq"), finished("rtn")
    one["metrics"]["perplexity"]["nll"], other["metrics"]["perplexity"]["nll"] = (
        np.mean(row["samples"]["perplexity"]["window_nll"]) for row in (one, other)
    )
    found = {each.name: each for each in difference.metrics(one, other)}
    nll = found["perplexity.nll"]
    assert nll.interval is not None
    assert nll.interval[0] < nll.other - nll.one < nll.interval[1]
    assert nll.interval[0] > 0.09  # RTN is made 0.1 worse, give or take 0.005 / √20 twice
    assert found["perplexity.kl"].interval == pytest.approx((0, 0))
    assert (found["size.bits_per_weight"].by_window, found["size.bits_per_weight"].interval) == (False, None)
    assert "latency.kernel" not in found
    assert "latency.decode.ratio" in found
    assert not [name for name in found if "tokens_per_second" in name]  # two times of a machine


def test_values_by_window_that_are_no_numbers_have_no_interval() -> None:
    one, other = finished("sinq"), finished("rtn")
    other["samples"]["perplexity"]["window_kl"][3] = float("nan")
    (kl,) = [each for each in difference.metrics(one, other) if each.name == "perplexity.kl"]
    assert (kl.by_window, kl.interval) == (False, None)


def test_few_windows_and_intervals_that_hold_zero_are_marked_apart(tmp_path: Path) -> None:
    """KL is equal in both rows by window, the NLL is not."""
    one, other = finished("sinq"), finished("rtn")
    other["metrics"]["perplexity"]["kl"] = 0.11
    assert "≈ the interval holds 0" in printed(one, other, tmp_path)
    assert "too few" not in printed(one, other, tmp_path)
    for row in (one, other):
        row["metrics"]["perplexity"]["windows"] = 5
        for name, values in row["samples"]["perplexity"].items():
            row["samples"]["perplexity"][name] = values[:5]
    few = printed(one, other, tmp_path)
    assert "(too few windows)" in few
    assert "by mean NLL: too few windows" in few
    assert "≈" not in few


def test_speeds_stand_beside_the_dense_models_of_the_same_rounds(tmp_path: Path) -> None:
    text = printed(finished("sinq"), finished("rtn", 3), tmp_path)
    assert text.count("10 → 20") == text.count("10 → 15") == 2
    assert text.count("2.00× (2.00–2.50)") == 2


def printed(one: Row, other: Row, folder: Path) -> str:
    """What the command prints about two rows, in a wide terminal."""
    before, console.width = console.width, 200
    try:
        with console.capture() as captured:
            __main__.show(one, other, folder, 2)
    finally:
        console.width = before
    return captured.get()


def test_numbers_of_another_protocol_are_left_out() -> None:
    names = {each.name for each in difference.metrics(finished("sinq"), finished("sinq", text="u"))}
    assert "size.bits_per_weight" in names
    assert not [name for name in names if name.startswith("perplexity.")]


def test_layers_come_with_the_largest_change_first(tmp_path: Path) -> None:
    one, other = store(tmp_path, finished("sinq"), finished("sinq", 3))
    table = difference.layers(one, other, tmp_path)
    change = layers(other).set_index("name") - layers(one).set_index("name")
    expected = change["relative_error"].sort_values(ascending=False)
    assert list(table.index) == list(expected.index)
    assert np.allclose(table["relative_error", "difference"], expected)
    assert difference.layers(one, finished("none"), tmp_path).empty


def test_output_errors_are_compared_where_both_have_them(tmp_path: Path) -> None:
    one, other = store(tmp_path, finished("sinq"), finished("rtn"))
    name = "model.layers.1.mlp.down_proj"
    one["samples"]["layer_error"], other["samples"]["layer_error"] = (
        {"relative_error": {name: value}} for value in (0.1, 0.4)
    )
    table = difference.layers(one, other, tmp_path)
    assert table.columns[0] == ("output_error", "one")
    assert table.loc[name, ("output_error", "difference")] == pytest.approx(0.3)
    assert table.index[0] == name


def test_everything_is_printed(tmp_path: Path) -> None:
    one, other = store(tmp_path, finished("sinq"), finished("rtn"))
    with console.capture() as captured:
        __main__.show(one, other, tmp_path, 2)
    text = captured.get()
    assert all(
        words in text
        for words in ("what was different", "method.name", "by mean NLL: worse", "6 layers in common")
    )
    assert text.count("model.layers.") == 2
    with console.capture() as captured:
        __main__.show(one, finished("sinq", text="u"), tmp_path, 2)
    assert "not compared: text is t and u" in captured.get()
