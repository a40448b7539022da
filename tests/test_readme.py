"""The README is true: its steps for adding a method work as written, and its commands exist."""

import re
import shutil
from pathlib import Path

from tests import forked
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_following_the_steps_adds_a_method(tiny_folder: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("sinq", "baselines", "experiments", "conf"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", project)
    steps = README[README.index("## Add a method") :]
    for language, content in re.findall(r"```(python|yaml)\n(.*?)```", steps, re.S):
        path = re.match(r"# (\S+)\n", content)
        assert path, f"a block of {language} does not begin with its path"
        (project / path[1]).write_text(content)
    method = re.search(r"python run.py method=(\w+)", steps)
    assert method
    options = ["model=hub", f"model.path={tiny_folder}", "text.evaluate_from=2025", "evaluation=quality", "group_size=32", "logger=none"]
    words = ("run.py", f"method={method[1]}", "bits=3", f"results_dir={tmp_path / 'results'}", *options)
    done = forked.run(tmp_path / "work", words, {"SINQ_CACHE": str(tmp_path / "cache")}, project)
    assert done.done() == 0, done.output
    assert f"{method[1]} 3-bit g32" in done.stdout


def test_it_shows_a_result() -> None:
    results = README[README.index("## A result") : README.index("## A sweep")]
    assert re.search(r"\| SINQ(, 4 bits)? *\| *\d\.\d+ \|", results)
    assert "quote nothing" in results


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_its_files_exist() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
