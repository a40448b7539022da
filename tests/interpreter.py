"""Tests of Triton kernels, called in a process in which Triton interprets them.

Without a GPU, kernels run in Triton's interpreter, which must be chosen before Triton is imported, and for
a whole process. So tests marked `interpreted` are collected, chosen and reported like all others, but their
functions are called by a second session of pytest, in a process of its own that waits for the next. With
CUDA they run here.
"""

import os
from collections.abc import Iterable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

MARK = "interpreted"
VARIABLE = "TRITON_INTERPRET"
CONTEXT = get_context("spawn")  # what `forked.py` forks from has imported Triton

Outcome = tuple[str, str]
"""`passed`, `failed` or `skipped`, and the text of the failure or the reason."""


def needed() -> bool:
    """Return whether this process cannot run a Triton kernel itself."""
    return not torch.cuda.is_available() and os.environ.get(VARIABLE) != "1"


class Interpreter:
    """A plugin of the ordinary session, which begins the other one with the first test that needs it."""

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._connection: Connection | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which files the other session will have to collect."""
        self._files = sorted({item.path for item in session.items if item.get_closest_marker(MARK)})

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Have a test called there, and end it here as it ended there."""
        if pyfuncitem.get_closest_marker(MARK) is None:
            return None
        for outcome, text in self._run(pyfuncitem.nodeid):
            if outcome == "failed":
                pytest.fail(text, pytrace=False)
            if outcome == "skipped":
                pytest.skip(text)
        return True

    def pytest_unconfigure(self) -> None:
        """End the other session: it sees that nobody asks any more."""
        if self._connection is not None:
            self._connection.close()

    def _run(self, name: str) -> list[Outcome]:
        if self._connection is None:
            self._connection, other = CONTEXT.Pipe()
            CONTEXT.Process(target=_serve, args=(other, self._files), daemon=True).start()
            other.close()
        self._connection.send(name)
        outcomes: list[Outcome] = self._connection.recv()
        return outcomes


class Server:
    """A plugin of the other session, which runs tests as they are asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outcomes: list[Outcome] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what became of a phase of a test."""
        skipped = isinstance(report.longrepr, tuple)  # (file, line, reason)
        self._outcomes.append((report.outcome, report.longrepr[2] if skipped else report.longreprtext))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run what is asked for, until nobody asks any more."""
        items = {item.nodeid: item for item in session.items}
        for name in _asked(self._connection):
            items[name].ihook.pytest_runtest_protocol(item=items[name], nextitem=None)
            self._connection.send(self._outcomes)
            self._outcomes = []
        return True


def _asked(connection: Connection) -> Iterable[str]:
    try:
        while True:
            yield connection.recv()
    except EOFError:
        return


def _serve(connection: Connection, files: list[Path]) -> None:
    os.environ[VARIABLE] = "1"
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    pytest.main(["-p", "no:cacheprovider", *map(str, files)], [Server(connection)])
