"""The leaderboard: what is ranked and in which order, the reasons of rows that are not, merged folders."""

import random
import sys
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from experiments.report import __main__ as command
from experiments.report import versions
from experiments.report.eligible import DENSE, NOISE
from experiments.report.folders import Folder, Merged, merge
from experiments.report.leaderboard import Board, leaderboard
from experiments.report.page import html, report_on
from experiments.results import record
from experiments.results.record import Row
from tests.experiments.report.browser import opened
from tests.experiments.rows import HARD, failed, finished, layers, store

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NASTY = "<script>alert('&')</script>"


def measured(by: str, row: Row, **changes: Any) -> Row:
    """A row that somebody measured; `provenance__code={...}` changes a nested value."""
    row = deepcopy(row) | {"measured_by": by}
    for path, value in changes.items():
        *above, last = path.split("__")
        part = row
        for name in above:
            part = part[name]
        part[last] = value
    return row


def shifted(row: Row, shift: float) -> Row:
    """The row with each window's NLL changed by a constant."""
    nll = [value + shift for value in row["samples"]["perplexity"]["window_nll"]]
    return measured(
        row.get("measured_by", "ana"),
        row,
        samples__perplexity__window_nll=nll,
        metrics__perplexity__value=float(np.exp(np.mean(nll))),
    )


def board_of(*rows: Row, **options: Any) -> Board:
    (board,) = leaderboard(rows, **options).boards
    return board


def ranks(board: Board) -> list[tuple[int | None, str]]:
    return [(line.rank, line.row["run_id"]) for line in board.ranked]


THREE = [measured("ana", finished(method, 3)) for method in ("sinq", "hqq", "rtn")]


def test_runs_are_ranked_by_mean_nll_and_the_dense_model_is_not() -> None:
    board = board_of(measured("ana", finished("none")), *reversed(THREE))
    means = [np.mean(row["samples"]["perplexity"]["window_nll"]) for row in THREE]
    assert means == sorted(means)
    assert ranks(board) == [(1, "sinq3t"), (2, "hqq3t"), (3, "rtn3t")]
    assert [line.reasons for line in board.unranked] == [(DENSE,)]
    first, second, _ = board.ranked
    assert first.to_first is None
    assert second.to_first is not None
    assert second.to_first.delta_nll == pytest.approx(means[1] - means[0])


def test_runs_that_cannot_be_told_apart_share_a_rank() -> None:
    noise = np.random.default_rng(3).normal(0, 0.01, len(HARD))
    near = measured("ana", finished("sinq", 3, tiling=2))
    near["samples"]["perplexity"]["window_nll"] = list(
        np.asarray(THREE[0]["samples"]["perplexity"]["window_nll"]) + noise - noise.mean() + 1e-4
    )
    near["metrics"]["perplexity"]["value"] *= 1.0001
    board = board_of(*THREE, near)
    assert ranks(board) == [(1, "sinq3t"), (1, "sinq3t2"), (3, "hqq3t"), (4, "rtn3t")]


def test_the_same_run_of_two_people_counts_once_and_has_a_line() -> None:
    theirs = shifted(measured("bob", THREE[0]), 2e-5)
    board = board_of(*THREE, measured("bob", theirs, run_id="sinq3t@bob"))
    assert ranks(board) == [(1, "sinq3t"), (1, "sinq3t@bob"), (2, "hqq3t"), (3, "rtn3t")]
    (repeat,) = board.repeats
    assert (repeat.one.by, repeat.other.by) == ("ana", "bob")
    assert (repeat.delta_nll, repeat.largest) == (pytest.approx(2e-5), pytest.approx(2e-5))
    assert "ana " in repeat.words
    assert "+2e-05" in repeat.words


def test_a_second_measurement_that_is_far_off_has_a_rank_of_its_own() -> None:
    theirs = measured("bob", shifted(THREE[0], 0.15), run_id="sinq3t@bob")
    board = board_of(*THREE, theirs)
    assert ranks(board) == [(1, "sinq3t"), (2, "hqq3t"), (3, "sinq3t@bob"), (4, "rtn3t")]


def test_other_evaluations_make_no_other_run() -> None:
    theirs = measured("bob", THREE[0], run_id="other", options__evaluation={"size": {}})
    theirs["identity"]["evaluation"]["size"] = {"name": "size", "version": 1}
    (repeat,) = board_of(*THREE, theirs).repeats
    assert repeat.words.endswith("equal in every window")


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"provenance__code": {"commit": "0123", "changed": True}}, "its code had changes that are in no commit"),
    ({"provenance__code": {"commit": None, "changed": None}}, "its code is unknown: no commit was recorded"),
    ({"metrics__perplexity__value": float("inf")}, "it has no finite perplexity"),
    ({"metrics__perplexity": {}}, "it has no finite perplexity"),
    ({"samples__perplexity": {}}, "it has no finite perplexity"),
    ({"samples__perplexity__window_nll": [float("nan")] * 20}, "it has no finite perplexity"),
    ({"protocol__fingerprint": "u"}, "text is t u, not t t"),
    ({"protocol__tokens": 8000}, "number of tokens is 8000, not 9000"),
    ({"metrics__perplexity__seqlen": 1024}, "seqlen is 1024, not 2048"),
    ({"protocol__dtype": "bfloat16"}, "dtype is bfloat16, not float32"),
    ({"identity__device": "cuda"}, "device is cuda, not cpu"),
    (
        {"identity__model": {"name": "m", "dtype": "float16"}},
        "model is name m dtype float16, not name m dtype float32",
    ),
    (
        {"identity__calibration": {"name": "text", "text": {"name": "t", "fingerprint": "t"}}},
        "it was calibrated on the text that is evaluated",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), CHANGES, ids=[next(iter(change)) for change, _ in CHANGES])
def test_what_is_not_comparable_says_why_and_the_rest_is_ranked(changes: dict[str, Any], reason: str) -> None:
    other = measured("bob", finished("rtn", 4), **changes)
    board = board_of(*THREE, other)
    assert ranks(board) == [(1, "sinq3t"), (2, "hqq3t"), (3, "rtn3t")]
    assert [(line.row["run_id"], line.reasons) for line in board.unranked] == [("rtn4t", (reason,))]


def test_the_noise_floor_is_no_method() -> None:
    floor = measured("bob", finished("sinq", 4), identity__method={"name": "cast", "version": 1})
    assert [line.reasons for line in board_of(*THREE, floor).unranked] == [(NOISE,)]


def test_a_failed_run_says_what_it_failed_of() -> None:
    board = board_of(*THREE, measured("bob", failed(reason="too large"), choices={"model": "m", "text": "t"}))
    assert [line.reasons for line in board.unranked] == [("it failed: too large",)]


def test_rows_of_an_old_version_are_not_ranked() -> None:
    old = {"name": "awq", "version": 1, "inner": {"name": "rtn", "version": 1}}
    row = measured("bob", finished("sinq", 4), identity__method=old)
    assert board_of(*THREE, row).ranked[0].row["run_id"] == "sinq4t"
    ours = {("method", "awq"): 1, ("method", "rtn"): 2}
    (line,) = board_of(*THREE, row, code=ours).unranked
    assert line.reasons == ("rtn is of version 1, the newest is 2: run it again",)
    newer = measured("cleo", row, run_id="newer", identity__method=old | {"version": 2})
    assert [line.row["run_id"] for line in board_of(*THREE, row, newer).unranked] == ["sinq4t"]
    old_measure = {"perplexity": {"name": "perplexity", "version": 1}}
    evaluated = measured("bob", finished("sinq", 4), identity__evaluation=old_measure)
    (line,) = board_of(*THREE, evaluated, code={("evaluation", "perplexity"): 2}).unranked
    assert line.reasons == ("perplexity is of version 1, the newest is 2: run it again",)


def test_the_code_knows_the_versions_of_its_methods() -> None:
    from baselines.awq import AWQ
    from experiments.evaluation import Perplexity

    known = command.code()
    assert known["method", "awq"] == AWQ.version > 1
    assert known["evaluation", "perplexity"] == Perplexity.version
    assert versions.of_row(finished("sinq")) == {}


def test_the_protocol_of_most_people_is_ranked() -> None:
    alone = [measured("ana", finished(method, 4, text="u")) for method in ("sinq", "hqq", "rtn")]
    shared = [measured("ana", finished("sinq", 3)), measured("bob", finished("rtn", 3))]
    (board,) = leaderboard([*alone, *shared], keys=["model"]).boards
    assert ranks(board) == [(1, "sinq3t"), (2, "rtn3t")]
    assert "file t" in board.protocol
    assert len(board.unranked) == 3
    assert [each.title for each in leaderboard([*alone, *shared]).boards] == ["m, u", "m, t"]
    by_bits = leaderboard([*alone, *shared], keys=["bits", "measured_by"]).boards
    assert [each.title for each in by_bits] == ["bits 4, ana", "bits 3, ana", "bits 3, bob"]


def test_ranks_depend_on_no_order_of_rows() -> None:
    rows = [
        measured("ana", finished(method, bits)) for method in ("sinq", "hqq", "rtn") for bits in (2, 3, 4)
    ]
    expected = ranks(board_of(*rows))
    generator = random.Random(5)
    for _ in range(10):
        generator.shuffle(rows)
        board = board_of(*rows)
        assert ranks(board) == expected
        numbers = [line.rank or 0 for line in board.ranked]
        assert numbers == sorted(numbers)


def test_few_windows_rank_by_the_mean_alone_and_say_so() -> None:
    rows = deepcopy(THREE)
    for row in rows:
        row["samples"]["perplexity"] = {"window_nll": row["samples"]["perplexity"]["window_nll"][:3]}
        row["metrics"]["perplexity"]["windows"] = 3
    board = board_of(*rows)
    assert [line.rank for line in board.ranked] == [1, 2, 3]
    assert board.note == "Fewer than 6 windows: ranks by the mean alone."
    assert board_of(*THREE).note == ""


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(
        ValueError, match="--group-by width is nothing that boards are made by; choose from model"
    ):
        leaderboard(THREE, keys=["width"])


@pytest.fixture
def merged(tmp_path: Path) -> Merged:
    """Two people: one run in common with other numbers, one row that is a copy, one run each."""
    store(tmp_path / "ana", finished("none"), finished("sinq", 3), finished("rtn", 3))
    store(tmp_path / "bob", finished("none"), shifted(finished("sinq", 3), 1e-5), finished("hqq", 3))
    (tmp_path / "bob/runs/torn.json").write_text("{")
    return merge([Folder.of(str(tmp_path / "ana")), Folder.of(f"bob={tmp_path / 'bob'}")])


def test_merged_rows_say_who_measured_them(merged: Merged, tmp_path: Path) -> None:
    found = {row["run_id"]: row["measured_by"] for row in merged.rows}
    assert found == {"none4t": "ana", "rtn3t": "ana", "sinq3t": "ana", "sinq3t@bob": "bob", "hqq3t": "bob"}
    assert merged.notes == ("1 rows of bob are the same files as rows of ana, and stand here once",)
    assert list(merged.unreadable) == ["bob/torn.json"]
    theirs = layers(finished("sinq", 3)).assign(bits_per_weight=9.0)
    record.write(tmp_path / "bob", finished("sinq", 3), theirs)
    assert (merged.layers("sinq3t@bob")["bits_per_weight"] == 9.0).all()
    assert (merged.layers("sinq3t")["bits_per_weight"] == 4.5).all()


def test_folders_need_names_that_differ_and_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store(tmp_path / name / "results", finished("sinq"))
    same = [Folder.of(str(tmp_path / name / "results")) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"both have the name results; name who measured: anna="):
        merge(same)
    with pytest.raises(ValueError, match=r"'ana & bob' is no name of who measured; give one of letters"):
        Folder.of(f"ana & bob={tmp_path}")
    with pytest.raises(ValueError, match=r"has no rows; make some with python run.py results_dir="):
        merge([Folder.of(str(tmp_path / "nobody"))])


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take longest."""
    monkeypatch.setattr("experiments.report.page.figures_of", lambda *about: ())


@pytest.mark.usefixtures("no_figures")
def test_the_page_has_the_boards_and_both_runs(merged: Merged) -> None:
    broken = measured("bob", failed(reason=NASTY), choices={"model": "m", "text": "t"})
    merged = Merged((*merged.rows, broken), merged.sources | {"broken": merged.sources["hqq3t"]}, {}, ())
    report = report_on(merged, heading="Three bits", boards=leaderboard)
    page = html(report)
    assert report.title == "Three bits"
    names = [entry.name for entry in report.sections[0].group.entries]
    assert "sinq 3-bit g64, by ana" in names
    assert "sinq 3-bit g64, by bob" in names
    board = page[page.index('id="leaderboard"') :]
    for words in ("ana", "bob", "A chip", "0123456789", "difference in mean NLL +1e-05", "Not ranked"):
        assert words in board
    assert NASTY not in page
    assert report_on(merged).leaderboard is None


@pytest.mark.usefixtures("no_figures")
def test_damaged_layers_are_named_with_who_has_them(merged: Merged, tmp_path: Path) -> None:
    for by in ("ana", "bob"):
        (tmp_path / by / "runs/sinq3t.layers.csv").write_text("torn")
    assert {name.partition(".")[0] for name in report_on(merged).unreadable} == {
        "ana/sinq3t", "bob/sinq3t", "bob/torn"
    }  # fmt: skip


def test_a_run_of_the_board_is_picked_everywhere(chromium: "Browser", merged: Merged, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    (tmp_path / "page.html").write_text(html(report_on(merged, boards=leaderboard)))
    with opened(chromium, tmp_path / "page.html", theme="dark") as page:
        assert axe.run(page).response["violations"] == []
    with opened(chromium, tmp_path / "page.html", width=400) as page:
        page.locator("#leaderboard [data-pick='sinq3t@bob']").focus()
        page.keyboard.press("Enter")
        assert page.locator("#leaderboard tr.picked").get_attribute("data-run") == "sinq3t@bob"
        assert "bob" in page.inner_text("#panel h2")
        assert page.locator("#runs tr.picked").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert axe.run(page).response["violations"] == []
        page.reload()
        assert page.locator("#leaderboard tr.picked").get_attribute("data-run") == "sinq3t@bob"
        page.keyboard.press("Escape")
        assert page.locator("#leaderboard tr.picked").count() == 0


@pytest.mark.usefixtures("no_figures")
def test_the_command_takes_folders_and_a_title(
    merged: Merged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "report",
        str(tmp_path / "ana"),
        f"bob={tmp_path / 'bob'}",
        "--title",
        "Ours",
        "--group-by",
        "bits",
    ]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(
        "experiments.report.page.html", lambda report: repr((report.title, report.leaderboard))
    )
    command.main()
    page = (tmp_path / "ana/report.html").read_text()
    assert page.startswith("('Ours', Leaderboard(")
    assert "Board(title='bits 3'" in page
