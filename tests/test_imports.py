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


def test_the_library_works_without_the_harness() -> None:
    hide = "import sys; sys.modules['experiments'] = sys.modules['baselines'] = None"
    subprocess.run([sys.executable, "-c", f"{hide}; import torch, sinq; sinq.SINQ().quantize(torch.ones(4, 64))"], cwd=ROOT, check=True)
