"""Dependencies point one way: run.py → experiments → baselines → sinq."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.conftest import ROOT

MAY_IMPORT = {
    "sinq": {"sinq", "torch", "numpy", "safetensors", "transformers", "numba", "llvmlite", "triton"},
    "baselines": {"baselines", "sinq", "torch", "numpy", "numba"},
    "experiments": None,
}
OURS = {"sinq", "baselines", "experiments", "run"}
RANK = {"sinq": 0, "baselines": 1, "experiments": 2}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 2
    for file in files:
        names = imported(file) - set(sys.stdlib_module_names)
        for name in names & OURS:
            assert RANK.get(name, 9) <= RANK[package], f"{file.relative_to(ROOT)} imports {name}"
        allowed = MAY_IMPORT[package]
        assert allowed is None or names <= allowed, f"{file.relative_to(ROOT)} imports {names - allowed}"


def without_the_harness() -> None:
    """Import sinq, and quantize with it, where nothing above it can be imported."""
    forked.forget_project()
    sys.modules |= dict.fromkeys(("baselines", "experiments"))  # None: importing it is an error
    sinq = importlib.import_module("sinq")
    print(sinq.SINQ().quantize(torch.ones(4, 64)).shape)


def test_the_library_works_without_the_harness(tmp_path: Path) -> None:
    process = forked.fork(tmp_path, without_the_harness)
    assert process.done() == 0, process.output
    assert process.stdout.strip() == "(4, 64)"


@pytest.mark.parametrize("package", ["sinq", "baselines"])
def test_tests_of_the_library_need_no_harness(package: str) -> None:
    files = [ROOT / "tests/conftest.py", *sorted((ROOT / "tests" / package).rglob("*.py"))]
    assert len(files) > 10
    assert not [str(file.relative_to(ROOT)) for file in files if {"experiments", "run"} & imported(file)]
    assert not [str(file.relative_to(ROOT)) for file in files[1:] if "tests.experiments" in file.read_text()]


def test_helpers_of_tests_are_no_tests() -> None:
    texts = {file: file.read_text() for file in sorted((ROOT / "tests").rglob("*.py"))}
    assert not [str(file.relative_to(ROOT)) for file, text in texts.items() if re.search(r"^\s*(from|import) tests\S*\.test_", text, re.M)]
