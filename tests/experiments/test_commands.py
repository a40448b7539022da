"""Commands agree: `--results` is the folder to read, `--out` the file to write, `--help` has an example."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

from baselines.aqlm import AQLM
from baselines.gptq import GPTQ
from baselines.mixed import Mixed
from baselines.rtn import RTN
from experiments.common import errors
from experiments.track import weights_and_biases
from experiments.track.weights_and_biases import WandB
from sinq import Method, NotApplicable, Tuned, stream
from tests import forked
from tests.conftest import ROOT, tiny_model
from tests.experiments.rows import finished, store

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by runpy
READERS = {
    "results": (),
    "compare": ("method=sinq", "method=rtn"),
    "report": (),
    "tables": ("table16",),
}
"""Command → arguments it cannot do without."""


def run(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> int | str | None:
    """Run a command in this process; returns what it exits with."""
    monkeypatch.setattr(sys, "argv", [f"experiments.{command}", *arguments])
    try:
        runpy.run_module(f"experiments.{command}", run_name="__main__", alter_sys=False)
    except SystemExit as done:
        return done.code
    return 0


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store(tmp_path / "rows", finished("none"), finished("sinq"), finished("rtn"))
    return tmp_path / "rows"


@pytest.mark.parametrize("command", [*READERS, "bench", "track", "export"])
def test_help_says_what_a_command_does_by_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    said = capsys.readouterr().out
    assert f"usage: python -m experiments.{command}" in said
    assert f"\n    python -m experiments.{command}" in said
    assert "--results FOLDER" in said


@pytest.mark.parametrize("command", READERS)
def test_results_is_the_folder_that_is_read(
    command: str, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, *READERS[command], "--results", str(results)) == 0, (
        capsys.readouterr().out
    )
    monkeypatch.chdir(results.parent)
    (results.parent / "results").symlink_to(results)
    assert run(monkeypatch, command, *READERS[command]) == 0, capsys.readouterr().out


def test_help_of_a_run_has_examples_and_choices(tmp_path: Path) -> None:
    done = forked.run(tmp_path, ("run.py", "--help"))
    assert done.done() == 0, done.output
    assert "python run.py -m method=rtn,sinq" in done.stdout
    assert "sinq_refined" in done.stdout


def test_out_is_the_file_that_is_written(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ("--results", str(results), "--out")
    assert run(monkeypatch, "results", *source, str(tmp_path / "rows.parquet")) == 0
    assert set(pd.read_parquet(tmp_path / "rows.parquet")["run_id"]) == {"none4t", "sinq4t", "rtn4t"}
    assert run(monkeypatch, "report", *source, str(tmp_path / "page.html")) == 0
    assert "sinq 4-bit g64" in (tmp_path / "page.html").read_text()
    assert run(monkeypatch, "tables", "table16", *source, str(tmp_path / "t.md"), "--format", "markdown") == 0
    assert (tmp_path / "t.md").read_text().startswith("**")
    assert not list(results.glob("*.parquet")) + list(results.glob("*.html"))


def test_a_package_of_an_extra_that_is_missing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(SystemExit) as done:
        errors.run_cli(lambda: missing("altair.vegalite"))
    assert done.value.code == 1
    said = capsys.readouterr().out
    assert said == "error: altair is not installed; install it with pip install 'sinq-harness[report]'\n"
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        errors.run_cli(lambda: missing("sinq.nothing"))


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights_and_biases, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sinq-harness\[wandb\]'.* logger=none"):
        WandB()


@pytest.mark.parametrize(
    "method", [GPTQ(RTN()), AQLM(), Mixed(RTN()), Tuned(RTN())], ids=lambda each: each.name
)
def test_advice_is_python_in_the_library_and_options_on_a_command_line(
    method: Method, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotApplicable) as raised:
        method.compress(tiny_model("llama"))
    assert str(raised.value).endswith("; pass calibration=Calibration(tokens)")
    assert errors.explain(raised.value).endswith("; use calibration=wikitext2 or sotu")
    with pytest.raises(NotApplicable) as raised:
        stream(tiny_folder, tmp_path / "to", method)
    assert str(raised.value).endswith("; use compress")
    assert errors.explain(raised.value).endswith("; use stream=false")


def test_no_message_of_the_library_names_an_option_of_a_run() -> None:
    options = re.compile(r"\b(calibration=[a-z]|stream=|method=|text=|model=|evaluation\W|run\.py)")
    for file in sorted((ROOT / "sinq").rglob("*.py")) + sorted((ROOT / "baselines").rglob("*.py")):
        tree = ast.parse(file.read_text())
        said = [node for each in ast.walk(tree) if isinstance(each, ast.Raise) for node in ast.walk(each)]
        texts = [
            node.value for node in said if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [text for text in texts if options.search(text)], file
