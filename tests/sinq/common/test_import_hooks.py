"""A module that is imported after another one: once, whole, and without a trace in the first."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinq.common.import_hooks import import_after

FIRST, THEN = "hooked_first", "hooked_then"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two modules, of which the second needs the whole of the first."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{FIRST}.py").write_text("begun = True\nwhole = True\n")
    (tmp_path / f"{THEN}.py").write_text(f"import {FIRST}\nassert {FIRST}.whole\n")
    finders = list(sys.meta_path)
    yield
    assert [finder for finder in sys.meta_path if finder not in finders] == []
    for name in (FIRST, THEN):
        sys.modules.pop(name, None)


def test_it_waits_for_the_first() -> None:
    import_after(FIRST, THEN)
    importlib.import_module("hmac")
    assert THEN not in sys.modules
    first = importlib.import_module(FIRST)
    assert THEN in sys.modules
    assert "whole" in inspect.getsource(first)
    del sys.modules[THEN]
    importlib.reload(first)
    assert THEN not in sys.modules


def test_it_does_not_wait_for_what_is_there() -> None:
    importlib.import_module(FIRST)
    import_after(FIRST, THEN)
    assert THEN in sys.modules


def test_an_error_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / f"{THEN}.py").write_text("raise ValueError('broken')")
    import_after(FIRST, THEN)
    with pytest.raises(ValueError, match="broken"):
        importlib.import_module(FIRST)
    assert FIRST not in sys.modules


def test_a_first_that_is_missing_stays_missing(tmp_path: Path) -> None:
    (tmp_path / f"{FIRST}.py").unlink()
    importlib.invalidate_caches()
    import_after(FIRST, THEN)
    with pytest.raises(ModuleNotFoundError, match=FIRST):
        importlib.import_module(FIRST)
