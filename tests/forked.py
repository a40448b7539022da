"""Separate processes that start fast: forked from one that has imported everything and computed nothing.

Starting Python and importing torch, transformers and pandas takes much longer than the work of most tests.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preload"])
PACKAGES = {"sinq", "baselines", "experiments", "hydra_plugins", "run"}


@dataclass(frozen=True)
class Forked:
    """A process, and the files that what it prints goes to."""

    process: Any
    out: Path
    err: Path

    def done(self, limit: float = 1200) -> int:
        """Its exit code, when it has ended."""
        self.process.join(limit)
        assert self.process.exitcode is not None, f"still going after {limit} s: {self.output}"
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def fork(
    folder: Path, work: Callable[..., object], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Forked:
    """Begin `work(*arguments)`, as from the root of the project; `work` is a function of a module.

    Args:
        folder: for what it prints.
        environment: what to set in it besides.
    """
    folder.mkdir(exist_ok=True)
    number = len(list(folder.glob("out-*")))
    out, err = folder / f"out-{number}", folder / f"err-{number}"
    for file in (out, err):
        file.touch()
    process = CONTEXT.Process(target=_call, args=(work, arguments, out, err, dict(environment or {})))
    process.start()
    return Forked(process, out, err)


def run(
    folder: Path, words: tuple[str, ...], environment: Mapping[str, str] | None = None, root: Path = ROOT
) -> Forked:
    """Begin `python <words>`, where the first is a file of the project, or `-m` and a module.

    Args:
        folder: for what it prints.
        words: what follows `python`.
        environment: what to set in it besides.
        root: where the project is; a copy of it is imported anew.
    """
    return fork(folder, _run, words, root, environment=environment)


def forget_project() -> None:
    """Let the project's modules be imported anew, in a process in which they are to be others, or missing."""
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


def _call(
    work: Callable[..., object], arguments: tuple[Any, ...], out: Path, err: Path, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    os.chdir(ROOT)
    # as in a new process; the one that forks ignores the signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    work(*arguments)


def _run(words: tuple[str, ...], root: Path) -> None:
    if root != ROOT:
        forget_project()
        os.chdir(root)
    sys.path.insert(0, str(root))
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(root / words[0]), *words[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
