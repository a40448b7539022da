"""Every file of a results folder under every damage: commands give the right numbers, and name the file.

The numbers of the rows that are left are compared digit by digit with those of the undamaged folder.
"""

import csv
import io
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.results import record
from experiments.sweeps.progress import outcome_of
from experiments.sweeps.summary import FAILED
from tests.damage import DAMAGES
from tests.experiments.rows import finished, store

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by runpy
RUNS = ("none4t", "sinq4t", "rtn4t")
FILES = (*(f"{run}.json" for run in RUNS), *(f"{run}.layers.csv" for run in RUNS[1:]))
OTHER = {
    "none4t.json": "rtn4t.json",
    "sinq4t.json": "rtn4t.json",
    "rtn4t.json": "sinq4t.json",
    "sinq4t.layers.csv": "rtn4t.layers.csv",
    "rtn4t.layers.csv": "sinq4t.layers.csv",
}
NOBODY = 65534


def every_byte(file: Path) -> None:
    """Change one digit of a number: still a row, and a table, but of other numbers."""
    content = bytearray(file.read_bytes())
    where = next(k for k in range(len(content) // 2, len(content)) if content[k : k + 1] in b"12345678")
    content[where] += 1
    file.write_bytes(content)


def swapped(file: Path) -> None:
    other, away = file.with_name(OTHER[file.name]), file.with_name("away")
    file.rename(away)
    other.rename(file)
    away.rename(other)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def forbidden(file: Path) -> None:
    file.chmod(0)


HARM: dict[str, Callable[[Path], None]] = DAMAGES | {
    each.__name__: each for each in (every_byte, swapped, folder, dangling, forbidden)
}


@pytest.fixture
def results() -> Iterator[Path]:
    """A folder that nobody in particular may enter, as the tests' own may be closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        rows = [finished("none"), finished("sinq"), finished("rtn")]
        for row in rows[1:]:  # so that the two tables of layers are different
            row["metrics"]["compression"]["relative_error_mean"] += 0.01 * len(row["run_id"])
        store(Path(name), *rows)
        layers = record.layers_path(Path(name), "rtn4t")
        table = record.read_layers(Path(name), "rtn4t")
        table["relative_error"] *= 1.5
        record.write(Path(name), rows[2], table)
        assert layers.read_bytes() != record.layers_path(Path(name), "sinq4t").read_bytes()
        (Path(name) / "runs").chmod(0o777)
        yield Path(name)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", [f"experiments.{words[0]}", *words[1:]])
    try:
        runpy.run_module(f"experiments.{words[0]}", run_name="__main__", alter_sys=False)
    except SystemExit as done:
        return done.code
    return 0


def lines_of_csv(text: str) -> dict[str, dict[str, str]]:
    """Return the lines by run, without the names, which say what sets a run apart from the others."""
    return {line["run"]: line | {"name": ""} for line in csv.DictReader(io.StringIO(text))}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", FILES)
def test_the_rest_has_its_numbers_and_the_file_is_named(
    name: str,
    harm: str,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ("--results", str(results))
    listed = ("results", *where, "--format", "csv", "--out", str(results / "all.parquet"))
    assert command(monkeypatch, *listed) == 0
    right = lines_of_csv(capsys.readouterr().out)
    HARM[harm](results / "runs" / name)
    gone = {name.partition(".")[0], OTHER[name].partition(".")[0] if harm == "swapped" else ""}
    is_row = name.endswith(".json")
    if harm == "forbidden" and os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        assert command(monkeypatch, *listed) == 0
        said = capsys.readouterr()
        found = lines_of_csv(said.out)
        assert set(found) == set(right) - (gone if is_row else set())
        for run, line in found.items():
            assert line == {key: right[run][key] for key in line}
        assert (name in said.err) == is_row
        for words in (
            ("report", *where, "--out", str(results / "page.html")),
            ("tables", "table16", *where),
            ("compare", "sinq4t", "rtn4t", *where),
        ):
            status = command(monkeypatch, *words)
            said = capsys.readouterr()
            text = said.out + said.err
            lost = is_row and words[0] == "compare" and gone & {"sinq4t", "rtn4t"}
            assert status == (1 if lost else 0), text
            assert "Traceback" not in text
            of_layers = not is_row and words[0] in ("report", "compare")
            named = any(f"{run}.{name.partition('.')[2]}" in text for run in gone)
            assert named == (is_row or of_layers), (words, text)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


NO_OUTCOMES = (b"", b"{", b"\x93\xff", b"[]", b"3", b"null", b'{"run_id": 5}', b"[" * 10**5)


@pytest.mark.parametrize("content", NO_OUTCOMES)
def test_an_outcome_that_says_nothing_is_a_failed_run(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_bytes(content)
    found = outcome_of(tmp_path / "outcome.json")
    assert found is not None
    assert "outcome.json" in found[FAILED]
    assert len(found[FAILED].splitlines()) == 1
    shutil.rmtree(tmp_path)
    assert outcome_of(tmp_path / "outcome.json") is None
