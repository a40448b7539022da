"""Kills at every system call of a claim and of writing a row: nothing hangs, nothing is half there."""

import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.results import record
from experiments.results.record import Row, RowError
from experiments.runs import claims
from experiments.runs.claims import claim
from tests.experiments.rows import finished, layers
from tests.killed import CALLS, NEEDS_STRACE, killed

pytestmark = NEEDS_STRACE


def row(value: float) -> Row:
    made = finished("sinq")
    made["metrics"]["perplexity"]["value"] = value
    return made


def work(folder: Path, value: float, wait: Callable[[], None]) -> None:
    """Write a row under a claim, once told to."""
    made = row(value)
    table = layers(made)
    table["relative_error"] = value
    wait()
    with claim(folder, made["run_id"]):
        record.write(folder, made, table)


def test_a_kill_at_any_call_leaves_what_was_or_what_is_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "VOID", 0.3)
    found: list[float | None] = []
    empty = 0
    for call in CALLS:
        for number in itertools.count(1):
            folder = tmp_path / f"{call}{number}"
            there_before = len(found) % 2 == 0  # there is a row already, or there is none
            if there_before:
                before = row(5.0)
                record.write(folder, before, layers(before))
            if not killed(call, number, work, folder, 7.0):
                break
            marker = folder / ".claims/sinq4t"
            empty += marker.is_file() and marker.stat().st_size == 0
            start = time.monotonic()
            with claim(folder, "sinq4t"):
                assert time.monotonic() - start < 30
            found.append(state(folder, there_before))
    assert len(found) > 20
    assert empty >= 1
    assert {5.0, 7.0, None} <= set(found)
    print(f"{len(found)} kills, {empty} empty claims: {found}")


def state(folder: Path, there_before: bool) -> float | None:
    """Return the perplexity of the row that is there; check that it and its table of layers are whole."""
    rows, unreadable = record.read(folder)
    assert not unreadable
    assert [file.name for file in folder.glob("runs/.*")] == []
    assert list((folder / ".claims").iterdir()) == []
    if not rows:
        assert not there_before
        return None
    value = rows[0]["metrics"]["perplexity"]["value"]
    assert value in (5.0, 7.0)
    with contextlib.suppress(RowError):  # killed between the two files: the table is refused
        table = record.read_layers(folder, "sinq4t")
        assert (table["relative_error"] == 7.0).all() == (value == 7.0)
    return value
