"""The report of a folder: groups of comparable rows, their names, notes and figures."""

import re
from pathlib import Path

import pytest

from experiments.report.comparable import groups
from experiments.report.page import Report, collect, headline, html
from tests.experiments.checkpoints import course
from tests.experiments.rows import failed, finished, store

NASTY = "<script>alert('&')</script>"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [finished(method, bits) for method in ("sinq", "rtn", "hqq") for bits in (4, 3)]
    store(
        tmp_path,
        finished("none"),
        *rows,
        finished("none", text="u"),
        finished("sinq", text="u"),
        failed(reason=NASTY),
    )
    (tmp_path / "runs/torn.json").write_text("{")
    return tmp_path


@pytest.fixture
def report(results: Path) -> Report:
    return collect(results)


def test_rows_of_different_protocols_are_in_different_groups(report: Report) -> None:
    assert [[entry.row["run_id"] for entry in section.group.entries] for section in report.sections] == [
        ["none4t", "hqq4t", "hqq3t", "rtn4t", "rtn3t", "sinq4t", "sinq3t"],
        ["none4u", "sinq4u"],
    ]
    assert (len(report.failed), list(report.unreadable)) == (1, ["torn.json"])


def test_a_family_has_runs_that_differ_in_bits_alone() -> None:
    (group,) = groups(
        [finished("sinq"), finished("sinq", 3), finished("sinq", group_size=32), finished("none")]
    )
    families = {entry.row["run_id"]: entry.family for entry in group.entries}
    assert families == {
        "none4t": "none",
        "sinq4t": "sinq group_size=64",
        "sinq3t": "sinq group_size=64",
        "sinq4t32": "sinq group_size=32",
    }


def test_families_do_not_mix_what_was_done_to_the_layers() -> None:
    rows = [finished("sinq"), finished("sinq", 3)]
    rows[1]["identity"]["layers"] = {"on_misfit": "skip"}
    (group,) = groups(rows)
    assert len({entry.family for entry in group.entries}) == 2


def test_a_reference_that_means_several_rows_is_told_and_costs_other_groups_nothing(results: Path) -> None:
    twin = finished("sinq") | {"run_id": "twin"}
    twin["options"]["method"]["early_stop"] = False
    store(results, twin, finished("rtn", text="u"))
    first, second = collect(results).sections
    assert any("fits several rows, so no comparison" in note for note in first.notes)
    assert not second.notes
    assert "forest" in [figure.key for figure in second.figures]


def test_one_ambiguous_row_costs_the_others_nothing(results: Path) -> None:
    """Of seven runs only the 4-bit ones have two counterparts."""
    twin = finished("sinq") | {"run_id": "twin"}
    twin["options"]["method"]["early_stop"] = False
    store(results, twin)
    (forest,) = [figure for figure in collect(results).sections[0].figures if figure.key == "forest"]
    assert [row["name"] for row in forest.rows] == ["hqq 3-bit g64", "rtn 3-bit g64"]


def test_the_page_is_titled_by_what_was_run_and_names_no_folder(results: Path) -> None:
    report = collect(results)
    assert report.title == "SINQ harness – m on t and m on u, 9 runs, commit 0123456, 2026-01-02"
    page = html(report)
    assert f"<title>{report.title}</title>" in page
    assert str(results) not in page
    assert "/" + results.name not in page
    more = [finished("rtn", text=text) | {"run_id": text} for text in "vw"]
    more[0]["provenance"]["finished_at"] = "2026-03-04T00:00:00+00:00"
    assert headline([entry.row for entry in report.sections[0].group.entries] + more) == (
        "m on t, m on v and 1 more, 9 runs, commit 0123456, 2026-01-02 to 2026-03-04"
    )


def test_groups_of_equal_name_get_their_protocol(tmp_path: Path) -> None:
    few = finished("sinq") | {"run_id": "few"}
    few["metrics"]["perplexity"]["windows"] = 10
    few["samples"]["perplexity"] = {"window_nll": few["samples"]["perplexity"]["window_nll"][:10]}
    store(tmp_path, finished("none"), finished("sinq"), few)
    titles = [section.group.title for section in collect(tmp_path).sections]
    assert sorted(titles) == ["m on t, 10 windows", "m on t, 20 windows"]


def test_only_some_runs_leaves_out_failed_ones_without_a_stop(results: Path) -> None:
    """A failed row of the pipeline has no `dense_run_id`."""
    row = failed()
    del row["dense_run_id"]
    store(results, row)
    assert collect(results, only=["method=sinq"]).failed == ()


def test_a_reference_nobody_has_is_refused(results: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--against awq names no finished run; give .* one of: hqq, none, rtn, sinq"
    ):
        collect(results, "awq")
    (tmp := results / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*has no rows"):
        collect(tmp)


def test_only_some_runs_and_always_the_dense_ones(results: Path) -> None:
    first, second = collect(results, only=["method=sinq,bits=3", "method=rtn,text=t,bits=4"]).sections
    assert {entry.row["run_id"] for entry in first.group.entries} == {"none4t", "sinq3t", "rtn4t"}
    assert {entry.row["run_id"] for entry in second.group.entries} == {"none4u"}
    with pytest.raises(ValueError, match="method=awq fits none of 9 runs"):
        collect(results, only=["method=awq"])
    with pytest.raises(ValueError, match="width in width=3 is nothing that a run was chosen by"):
        collect(results, only=["width=3"])


def test_checkpoints_have_curves_of_their_training(tmp_path: Path) -> None:
    store(tmp_path, *course({0: 2.5, 10: 0.0, 60: 1.3}))
    report = collect(tmp_path)
    assert [figure.key for figure in report.over_steps] == ["over_steps_entropy"]
    page = html(report)
    assert "Entropy of attention over training" in page
    store(tmp_path / "plain", finished("none"))
    assert 'id="trainings"' in page
    assert 'id="trainings"' not in html(collect(tmp_path / "plain"))


def test_the_page_escapes_what_rows_say(report: Report) -> None:
    page = html(report)
    assert NASTY not in page
    assert "&lt;script&gt;alert" in page
    without = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?!#|data:)[^\"'>\s]+|url\(|@import", without)
