"""What starting up imports: no more than a help or a typo needs. Modules are compared, never times."""

import re
import subprocess
import sys

import pytest

from experiments.common import usage
from tests.conftest import ROOT

TORCH = {"torch", "numpy", "sinq", "baselines"}
NEVER = {
    "transformers", "tokenizers", "datasets", "huggingface_hub", "accelerate", "pandas", "pyarrow", "numba",
    "triton", "altair", "vl_convert", "wandb", "lm_eval", "optuna", "sympy", "torch._dynamo",
    "torch._inductor",
}  # fmt: skip
"""Modules that a command loads when it works; `torch._dynamo` takes as long to import as torch."""
AT_THE_END = "import atexit, sys; atexit.register(lambda: print(' '.join(['loaded:', *sys.modules])))"
RUN = f"{AT_THE_END}; import runpy; runpy.run_path('run.py', run_name='__main__')"


def started(*words: str) -> tuple[int, str, set[str]]:
    """Run `python run.py <words>` in a new process; return its status, what it prints, and its modules."""
    command = [sys.executable, "-c", RUN, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    said, _, loaded = done.stdout.rpartition("loaded:")
    return done.returncode, said + done.stderr, set(loaded.split())


def test_help_imports_no_torch() -> None:
    status, said, loaded = started("--help")
    assert status == 0, said
    assert "omegaconf" in loaded
    assert not loaded & (NEVER | TORCH)


def test_a_typo_is_reported_before_model_classes_are_imported() -> None:
    status, said, loaded = started("methd=sinq")
    assert (status, said[:35]) == (1, "error: there is no option methd; th")
    assert {"torch", "sinq"} <= loaded
    assert not loaded & NEVER


def test_importing_the_library_is_importing_torch() -> None:
    code = f"{AT_THE_END}; import sinq"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    assert {"torch", "sinq"} <= loaded
    assert not loaded & (NEVER | {"hydra", "omegaconf", "rich", "experiments"})


def test_help_names_every_choice_and_no_schema() -> None:
    said = usage.text()
    assert "schema" not in said
    for file in (ROOT / "conf").rglob("*.yaml"):
        if file.parent.parent == ROOT / "conf":
            assert re.search(rf"[\s,]{file.stem}[\s,]", said), file
    assert len(re.findall(r"^ +python run\.py", said, re.M)) >= 5
    assert max(map(len, said.splitlines())) <= 120


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    said = re.sub(r"\s+", " ", usage.text())
    assert "table1, table2, table3" in said
    assert "table8, table10, table11" in said


@pytest.mark.parametrize("words", [("--config-dir", "{}"), ("--config-dir={}",), ("-cd", "{}")])
def test_help_lists_choices_of_a_folder_that_is_given(words: tuple[str, ...], tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "method").mkdir()
    (tmp_path / "method/theirs2.yaml").touch()
    given = [word.format(tmp_path) for word in words]
    assert "theirs2" in usage.text(["--help", *given])
    assert "theirs2" not in usage.text(["--help"])


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("method=rtn", "--help")])
def test_help_is_asked_for_anywhere(words: tuple[str, ...]) -> None:
    assert usage.is_wanted(words)
    assert not usage.is_wanted(["method=rtn", "--cfg", "job"])


INTERRUPT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("name", ["omegaconf", "hydra.main", "numpy", "torch", "experiments.config.build"])
def test_ctrl_c_while_a_module_is_imported_is_a_line(name: str) -> None:
    code = f"{INTERRUPT.format(name=name)}import runpy; runpy.run_path('run.py', run_name='__main__')"
    command = [sys.executable, "-c", code, "method=rtn"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "error: interrupted; nothing was begun\n", "")
