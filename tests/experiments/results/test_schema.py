"""Rows before use: refusals and their messages, and the conversion of old rows into new ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.results import record
from experiments.results.schema import MIGRATIONS, SCHEMA, NewerRowError, RowError, checked
from tests.experiments.rows import failed, finished, store


def test_rows_of_the_pipeline_pass_unchanged() -> None:
    for row in (finished(), finished("none"), failed()):
        assert checked(row) == row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_id": None}, "run_id is 'None': Input should be a valid string"),
        (
            {"metrics": {"perplexity": {"value": "12"}}},
            "metrics.perplexity.value is '12': Input should be a valid number",
        ),
        (
            {"metrics": {"perplexity": {"value": True}}},
            "metrics.perplexity.value is 'True': Input should be a valid number",
        ),
        ({"metrics": []}, r"metrics is '\[\]': Input should be a valid dictionary"),
        ({"status": "running"}, "status is 'running', not one of finished, failed"),
        (
            {"samples": {"perplexity": {"window_nll": [1.0, "x"]}}},
            "samples.perplexity.window_nll.1 is 'x': Input should be a valid number",
        ),
        ({"schema": None}, "schema is None, not a version from 1"),
        ({"schema": "1"}, "schema is '1', not a version"),
    ],
)
def test_what_is_no_row_is_refused_and_the_place_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        checked(finished() | change)


def test_all_problems_are_told_at_once() -> None:
    row = {key: value for key, value in finished().items() if key != "run_id"}
    with pytest.raises(RowError, match=r"run_id is missing; name is '3': Input should be a valid string"):
        checked(row | {"name": 3})


def test_an_old_row_takes_every_step_to_the_current_version() -> None:
    steps = {
        1: lambda row: row | {"status": row["state"]},
        2: lambda row: row | {"name": row["name"].upper()},
    }
    old = {key: value for key, value in finished().items() if key != "status"} | {
        "state": "finished",
        "schema": 1,
    }
    new = checked(old, steps, 3)
    assert (new["schema"], new["status"], new["name"]) == (3, "finished", "SINQ 4-BIT G64")
    assert checked(old | {"schema": 2, "status": "failed"}, steps, 3)["status"] == "failed"
    assert "status" not in old


def test_every_version_before_this_one_has_a_step() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA))


def test_files_that_are_no_rows_are_named_and_stop_nothing(tmp_path: Path) -> None:
    (whole,) = store(tmp_path, finished())
    runs = tmp_path / "runs"
    text = (runs / f"{whole['run_id']}.json").read_text()
    (runs / "torn.json").write_text(text[: len(text) // 2])
    (runs / "empty.json").write_text("")
    (runs / "binary.json").write_bytes(b"\xff\xfe\x00")
    (runs / "list.json").write_text("[1]")
    (runs / "copy.json").write_text(text)
    (runs / "newer.json").write_text(json.dumps(whole | {"run_id": "newer", "schema": SCHEMA + 1}))
    rows, unreadable = record.read(tmp_path)
    assert rows == [whole]
    assert set(unreadable) == {
        f"{name}.json" for name in ("torn", "empty", "binary", "list", "copy", "newer")
    }
    assert "cut off" in unreadable["torn.json"]
    assert unreadable["copy.json"] == f"it is the row of {whole['run_id']} under another name"
    assert record.find(tmp_path, "torn") is None


def test_every_cut_of_a_row_is_noticed(tmp_path: Path) -> None:
    store(tmp_path, finished())
    path = next((tmp_path / "runs").glob("*.json"))
    text = path.read_text()
    for length in range(0, len(text) - 1, 97):
        path.write_text(text[:length])
        rows, unreadable = record.read(tmp_path)
        assert (rows, list(unreadable)) == ([], [path.name])


def test_a_newer_row_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    store(tmp_path, finished() | {"run_id": "one"})
    path = record.row_path(tmp_path, "one")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": SCHEMA + 1}))
    known = f"schema is {SCHEMA + 1}, newer than the {SCHEMA} this code knows"
    with pytest.raises(NewerRowError, match=rf"one\.json: {known}"):
        record.find(tmp_path, "one")
