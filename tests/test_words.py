"""Words of the source: docstrings open with a verb or a noun; identifiers avoid a private dialect."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

FILES = sorted(
    file
    for package in ("sinq", "baselines", "experiments", "hydra_plugins")
    for file in (ROOT / package).rglob("*.py")
)
RIDDLES = re.compile(
    r"(What|Whether|Which|Why|How|As|Of|With|In|By|From|Where|When|One|Those|That|This|These|Its|It)\b(?!-)"
)
DIALECT = {"place", "told", "own", "its"}


def docstrings(tree: ast.Module) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def bound(tree: ast.Module) -> Iterator[str]:
    """Yield every name that a file assigns or takes as a parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_words(file) -> None:  # type: ignore[no-untyped-def]
    tree = ast.parse(file.read_text())
    assert not [text.splitlines()[0] for text in docstrings(tree) if RIDDLES.match(text)]
    assert not DIALECT & set(bound(tree))
