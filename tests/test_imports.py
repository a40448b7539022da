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
    "sinq": {
        "sinq",
        "torch",
        "numpy",
        "safetensors",
        "huggingface_hub",
        "transformers",
        "numba",
        "llvmlite",
        "triton",
        "peft",  # sinq/transformers/lora.py, which is imported by name
        "ray",  # sinq/checkpoint/workers.py, where it is asked for
    },
    "baselines": {"baselines", "sinq", "torch", "numpy", "numba", "triton"},
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


def graph(*packages: str) -> dict[str, set[str]]:
    """Map each module of our packages to modules that it imports anywhere or names for later import."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for p in packages
        for file in (ROOT / p).rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    return {name: named(file) & set(files) for name, file in files.items()}


def named(file: Path) -> set[str]:
    """Return every dotted name that a file imports, and every string of the form "module" or "module:name".

    `from a import b` is `a.b` where that is a module; it is `a` as well where b is something inside of it.
    """
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner if all(is_module(each) for each in inner) else inner | {str(node.module)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            names.add(node.value.partition(":")[0])
    return names


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


ORDER = {
    "sinq": "common formats algorithms kernels model calibration training methods checkpoint export "
    "transformers sinqlinear_hf hf_io",
    "experiments": "common results compare data models engines evaluation runs report track config export "
    "tables sweeps analysis bench command",
}
"""Folders (and modules) of a package; each may import what stands to its left."""


@pytest.mark.parametrize("package", sorted(ORDER))
def test_folders_import_only_what_stands_to_their_left(package: str) -> None:
    order, imports = ORDER[package].split(), graph(package)
    assert {name.split(".")[1] for name in imports if "." in name} <= {*order, "__main__"}
    commands = [name for name in imports if name.endswith(".__main__")]
    for name in imports.keys() - {package, *commands}:
        position = order.index(name.split(".")[1])
        wrong = {other for other in imports[name] - {package} if order.index(other.split(".")[1]) > position}
        assert not wrong, f"{name} imports {', '.join(sorted(wrong))}"
        assert package not in imports[name] or package == "experiments", f"{name} imports the public API"
    assert not {other for name in imports for other in imports[name] if other.endswith(".__main__")}


def circular(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules that import themselves by way of others."""
    return sorted(name for name in imports if name in reached(imports, imports[name] - {name}))


def reached(imports: dict[str, set[str]], start: set[str]) -> set[str]:
    found, waiting = set(start), list(start)
    while waiting:
        new = imports[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_a_circle_is_seen() -> None:
    assert circular({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circular({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert "sinq.kernels.cpu.linear" in graph("sinq")["sinq.kernels.product"]


def test_no_modules_import_each_other_not_even_later() -> None:
    assert circular(graph("sinq", "baselines")) == []


def import_the_library() -> None:
    """Import sinq anew, and print which of its modules import Numba or Triton, which take seconds."""
    forked.forget_project()
    importlib.import_module("sinq")
    modules = {
        name: Path(module.__file__ or "") for name, module in sys.modules.items() if name.startswith("sinq.")
    }
    print(len(modules), [name for name, file in modules.items() if {"numba", "triton"} & imported(file)])


def test_importing_the_library_imports_no_kernel(tmp_path: Path) -> None:
    process = forked.fork(tmp_path, import_the_library)
    assert process.done() == 0, process.output
    count, _, kernels = process.stdout.strip().partition(" ")
    assert int(count) > 20
    assert kernels == "[]"


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
    assert not [
        str(file.relative_to(ROOT))
        for file, text in texts.items()
        if re.search(r"^\s*(from|import) tests\S*\.test_", text, re.M)
    ]
