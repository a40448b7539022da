"""`python run.py` in processes that start in a moment: forked from one that has imported everything and computed nothing."""

import multiprocessing
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["experiments.sweep"])


@dataclass
class Cli:
    """One call of `run.py`."""

    process: Any
    log: Path

    def done(self, limit: float = 1200) -> int:
        """Its exit code, when it has ended."""
        self.process.join(limit)
        assert self.process.exitcode is not None, f"still going after {limit} s: {self.output}"
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text()


def start(folder: Path, *words: str) -> Cli:
    """Begin `python run.py <words>` with its cache in `folder`; what it prints goes to a file there."""
    folder.mkdir(exist_ok=True)
    log = folder / f"log-{len(list(folder.glob('log-*')))}"
    log.touch()
    process = CONTEXT.Process(target=_call, args=(words, log, folder / "cache"))
    process.start()
    return Cli(process, log)


def _call(words: tuple[str, ...], log: Path, cache: Path) -> None:
    os.environ["SINQ_CACHE"] = str(cache)
    os.chdir(ROOT)
    out = os.open(log, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = [str(ROOT / "run.py"), *words]
    sys.path.insert(0, str(ROOT))
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
