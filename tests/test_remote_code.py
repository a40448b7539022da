"""Code that comes with a model is never run and nobody is asked to: every call that could says so."""

import ast
from collections.abc import Iterator

from tests.conftest import ROOT

MAKERS = {"from_pretrained", "from_config"}
OF_CODE = {"experiments/bench/models.py", "experiments/bench/gpu/models.py"}
"""Files that make models of configurations written in them."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls of transformers' automatic classes, which look for code beside a configuration."""
    for package in ("sinq", "experiments", "baselines"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    of = node.func.value
                    if node.func.attr in MAKERS and isinstance(of, ast.Name) and of.id.startswith("Auto"):
                        yield str(file.relative_to(ROOT)), node


def test_every_call_refuses_remote_code() -> None:
    found = [(name, node) for name, node in calls() if name not in OF_CODE]
    assert len(found) >= 6
    for name, node in found:
        given = {each.arg: each.value for each in node.keywords}
        if None not in given:  # **options, which have it: pretrained.py
            value = given.get("trust_remote_code")
            assert isinstance(value, ast.Constant), f"{name}:{node.lineno}"
            assert value.value is False, f"{name}:{node.lineno}"
