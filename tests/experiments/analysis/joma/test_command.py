"""The command: tables, files, refusals."""

import csv
import json
from pathlib import Path

import pytest

from experiments.analysis.joma import study
from tests.experiments.analysis.command import command

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by runpy


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(study, "RATES", (0.1,))
    monkeypatch.setattr(study, "FIGURE_STEPS", 100)
    return command(monkeypatch, "joma", *arguments)


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_tables_are_printed_and_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"joma{suffix}"
    assert run(monkeypatch, "--seeds", "1", "--out", str(file)) == 0
    said = capsys.readouterr().out
    expected = study.entries(1)
    assert {entry.study for entry in expected} == {"invariants", "softmax", "laws", "entropy"}
    assert all(entry.case in said for entry in expected)
    numbers = {(e.study, e.case, name): value for e in expected for name, value in e.values.items()}
    if suffix == ".csv":
        lines = list(csv.DictReader(file.open()))
        assert {(x["study"], x["case"], x["quantity"]): float(x["value"]) for x in lines} == numbers
    else:
        written = json.loads(file.read_text())
        assert [study.Entry(**each) for each in written["tables"]] == expected
        assert {len(each) for each in written["entropy_curve"].values()} == {5001}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0"), "--seeds 0 is not possible; it must be from 1 to 100"),
        (("--out", "joma.txt"), "--out joma.txt is of no known type; give a name that ends in .json or .csv"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 1
    assert capsys.readouterr().out == f"error: {message}\n"
