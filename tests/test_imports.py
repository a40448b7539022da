"""Dependencies point one way: run.py → experiments → baselines → sinq."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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


def graph(*packages: str) -> dict[str, set[str]]:
    """Return the modules that each module of our packages imports, anywhere in its text, or names to be imported later."""
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for p in packages for file in (ROOT / p).rglob("*.py")}
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
    assert "sinq.kernels.cpu_linear" in graph("sinq")["sinq.kernels.product"]


def test_no_modules_import_each_other_not_even_later() -> None:
    assert circular(graph("sinq", "baselines")) == []


def test_importing_the_library_imports_no_kernel() -> None:
    """Numba and Triton take seconds; what transformers imports for itself is none of ours."""
    code = """
import sys
import transformers.modeling_utils
before = set(sys.modules)
import sinq
heavy = [m for m in set(sys.modules) - before if m.split(".")[0] in ("numba", "triton") or ".cpu_" in m or ".triton_" in m]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_library_works_without_the_harness() -> None:
    hide = "import sys; sys.modules['experiments'] = sys.modules['baselines'] = None"
    subprocess.run([sys.executable, "-c", f"{hide}; import torch, sinq; sinq.SINQ().quantize(torch.ones(4, 64))"], cwd=ROOT, check=True)
