"""Odd rows: each is refused by name where it is read, or every view of rows takes it."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.common.console import console
from experiments.compare import __main__ as compare_command
from experiments.compare.counterpart import compared
from experiments.compare.query import matching
from experiments.report import page
from experiments.report.comparable import groups
from experiments.report.run_table import table as page_table
from experiments.results import frame, listing, overview, record, schema
from experiments.results.record import Row
from experiments.results.schema import RowError, checked
from experiments.sweeps import summary
from experiments.tables import cells, spec
from tests.experiments.rows import failed, finished, store

PARTS = (
    "metrics",
    "identity",
    "options",
    "choices",
    "protocol",
    "provenance",
    "dense_run_id",
    "reason",
    "cost",
)
ODD = (None, {}, [], "x", -1, 0, 2.5, float("nan"), float("inf"), True)


def whole(status: str = "finished") -> Row:
    """A row with all that the pipeline records."""
    row = finished() if status == "finished" else failed()
    row["cost"] = {"seconds": 1.0, "peak_memory_bytes": 10}
    row["identity"]["evaluation"] = {"perplexity": {"name": "perplexity", "windows": 20}}
    row["identity"]["layers"] = {"exclude": ["lm_head"]}
    row["metrics"]["zero_shot"] = {"tasks": {"piqa": {"acc": 0.5, "acc_stderr": 0.1}}}
    row["metrics"].setdefault("compression", {})["decisions"] = {"shrunk_group_size=4": 3}
    return row


def paths(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*above, key)
            yield from paths(item, (*above, key))


def changed(row: Row, path: tuple[str, ...], *value: Any) -> Row:
    """Return a copy with a value replaced, or removed where none is given."""
    row = copy.deepcopy(row)
    inside = row
    for key in path[:-1]:
        inside = inside[key]
    if value:
        inside[path[-1]] = value[0]
    else:
        del inside[path[-1]]
    return row


def every_view(rows: list[Row], folder: Path) -> None:
    """Do what the commands do with rows, except for reading and writing files."""
    with console.capture():
        listing.chosen(listing.arranged(rows), None)
        listing.failures(rows)
        matching(rows, "method=rtn")
        frame.tabulate(rows)
        against = compared(rows, "rtn")
        against.columns()
        finished_rows = [row for row in rows if row["status"] == record.FINISHED]
        found = groups(rows)
        page_table(found, {})
        overview.show(finished_rows, folder, "title")
        cells.fill(spec.load("smoke"), rows)
        summary.pace(rows, 0.0, 1.0)
        for row in finished_rows[:1]:
            compare_command.show(row, finished_rows[-1], folder, 3)


CHANGES = [path for path in paths(whole()) if path[0] in PARTS]


def odd_rows() -> Iterator[tuple[str, Row]]:
    for number, path in enumerate(CHANGES):
        yield f"no {'.'.join(path)}", changed(whole(), path)
        for value in (ODD[number % len(ODD)], ODD[(7 * number + 3) % len(ODD)], None):
            yield f"{'.'.join(path)}={value}", changed(whole(), path, value)


def test_an_odd_row_is_refused_or_shown(tmp_path: Path) -> None:
    refused, shown, crashed = 0, 0, []
    for name, row in [
        *odd_rows(),
        *((f"failed, {name}", row | {"status": "failed"}) for name, row in odd_rows()),
    ]:
        try:
            accepted = checked(json.loads(json.dumps(row | {"run_id": "odd"})))
        except RowError:
            refused += 1
            continue
        shown += 1
        try:
            every_view([accepted, finished("none"), finished("rtn")], tmp_path)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            crashed.append(f"{name}: {error!r}")
    assert not crashed, "\n".join(crashed)
    assert refused > 100
    assert shown > 100


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema": 2' + "0" * 5000 + "}",
        '{"schema": 1, "run_id": "bad", "identity": {"method": {"kind": 5}}}',
        '{"schema": 1, "run_id": "bad", "identity": {"calibration": [1]}}',
        "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace") + "{",
        '"x"',
        "null",
    ],
)
def test_files_of_all_sorts_are_named(text: str, tmp_path: Path) -> None:
    store(tmp_path, finished("none"), finished("rtn"))
    (tmp_path / "runs/bad.json").write_text(text)
    rows, unreadable = record.read(tmp_path)
    assert (len(rows), list(unreadable)) == (2, ["bad.json"])
    assert len(unreadable["bad.json"].splitlines()) == 1
    assert record.find(tmp_path, "bad") is None
    report = page.collect(tmp_path)
    assert "bad.json" in page.html(report)


def test_a_folder_with_the_name_of_a_row_is_named(tmp_path: Path) -> None:
    store(tmp_path, finished("none"))
    (tmp_path / "runs/bad.json").mkdir()
    assert record.read(tmp_path)[1] == {"bad.json": "Is a directory"}
    with pytest.raises(RowError, match=r"bad\.json cannot be read: Is a directory; move it away"):
        record.find(tmp_path, "bad")


@pytest.mark.parametrize(
    "damage",
    [
        "", "garbage", "name,relative_error\nq,word\n", "relative_error\n0.1\n",
        'name,relative_error\n"q,0.1', "name,relative_error\nq,0.1\nq,0.2\n", "name,relative_error\n,0.1\n",
        "\x00\x01\x02",
    ],
)  # fmt: skip
def test_a_damaged_table_of_layers_is_named_and_stops_nothing(damage: str, tmp_path: Path) -> None:
    rows = store(tmp_path, finished("none"), finished("sinq"), finished("rtn"))
    file = record.layers_path(tmp_path, rows[1]["run_id"])
    file.write_text(damage)
    with pytest.raises(RowError, match=f"{file.name} is no table of layers"):
        record.read_layers(tmp_path, rows[1]["run_id"])
    report = page.collect(tmp_path)
    assert file.name in report.unreadable
    assert "relative_error" in [figure.key for figure in report.sections[0].figures]  # of the other run
    with console.capture() as captured:
        compare_command.show(rows[1], rows[2], tmp_path, 3)
        overview.show(rows, tmp_path, "title")
    assert captured.get().count(f"{file.name} is no table of layers") == 2


@pytest.mark.parametrize("value", [0.0, float("inf"), -1.0])
def test_an_all_zero_layer_is_fine(value: float, tmp_path: Path) -> None:
    rows = store(tmp_path, finished("none"), finished("sinq"), finished("rtn"))
    for row in rows[1:]:
        layers = record.read_layers(tmp_path, row["run_id"])
        layers.loc[0, ["relative_error", "imbalance_after"]] = value
        record.write(tmp_path, row, layers)
    keys = [figure.key for figure in page.collect(tmp_path).sections[0].figures]
    assert "imbalance_after" in keys
    assert page.html(page.collect(tmp_path))


MARKUP = (
    "[/data/a, /data/b]",
    "[bold]x",
    "layers.exclude=[lm_head,down_proj]",
    ":smile:",
    "[link=x]y[/link]",
)


@pytest.mark.parametrize("words", MARKUP)
def test_brackets_in_data_are_printed_as_they_are(words: str, tmp_path: Path) -> None:
    rows = [finished() | {"name": f"{words} one"}, finished("rtn"), finished("none")]
    broken = failed(words, f"ValueError: {words}")
    with console.capture() as captured:
        overview.show(rows, tmp_path, words)
        summary.list_misses([{"options": words, "failed": words}])
        compare_command.show(rows[0], rows[1], tmp_path, 3)
        for line in listing.failures([broken]):
            console.print(line)
        console.print(words)
    text = captured.get()
    assert text.count(words) >= 6


def test_every_status_has_a_schema() -> None:
    assert set(schema.ROWS) == {record.FINISHED, record.FAILED}
