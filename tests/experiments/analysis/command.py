"""A study's command, run in this process."""

import runpy
import sys
from typing import Any

import pytest


def command(monkeypatch: pytest.MonkeyPatch, study: str, *arguments: Any) -> int | str | None:
    """The exit status of `python -m experiments.analysis.<study> <arguments>`."""
    monkeypatch.setattr(sys, "argv", [study, *map(str, arguments)])
    try:
        runpy.run_module(f"experiments.analysis.{study}", run_name="__main__", alter_sys=False)
    except SystemExit as done:
        return done.code
    return 0
