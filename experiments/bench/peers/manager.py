"""Other people's packages, each in a process of its own, asked to quantize through a pipe.

All peers run by one mechanism (`peer_worker.py`): the package is imported from the folder named for it, or from this environment; it reads
the same matrices from a file and times itself when asked, so that it takes part in the same rounds as everybody else. While
it is not asked it waits for its input, and uses no processor.

A package that is not there, or that breaks, is listed with the reason (`PeerError`) and stops nothing. How to have them:

    pip install --no-deps --target peers/hqq hqq termcolor
    pip install --no-deps --target peers/sinq sinq          # never into this environment: our own package has that name
    pip install --no-deps --target peers/autoawq autoawq
    python -m experiments.bench --peers hqq=peers/hqq,sinq=peers/sinq,asinq=peers/sinq,autoawq=peers/autoawq

The last two take a minute and more for a matrix on a processor. Not covered: gptqmodel; the bench lists it as absent.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

import torch
from torch import Tensor

from experiments.bench.peers.worker import PEERS
from experiments.bench.timing import Implementation, PeerError, Skipped

WORKER = Path(__file__).with_name("worker.py")
NO_WORKER = {"gptqmodel": "no worker is written for it: it quantizes whole models only, from their files"}
OWN_FOLDER = ("sinq", "asinq")


class Worker:
    """A running peer. Made by `started`."""

    def __init__(self, peer: str, process: "subprocess.Popen[str]", errors: IO[bytes], scratch: Path) -> None:
        self.peer, self.process, self.errors, self.scratch = peer, process, errors, scratch
        self.version: str = self._answer()["version"]

    def prepare(self, weights: Sequence[Tensor], bits: int, group_size: int) -> None:
        """Hand over the matrices that `seconds` is about."""
        file = self.scratch / f"{self.peer}.pt"
        torch.save([weight.detach().float().contiguous() for weight in weights], file)
        self._ask({"file": str(file), "bits": bits, "group_size": group_size})

    def seconds(self) -> float:
        """Let it quantize all matrices once; the seconds it says it took."""
        return float(self._ask({})["seconds"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = (
            json.loads(line) if line else {"error": f"its process ended; last words: {self._last_words()}"}
        )
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self.errors.seek(0)
        return (self.errors.read().decode(errors="replace").strip().splitlines() or ["none"])[-1]


@dataclass(frozen=True)
class Peers:
    """The workers that started, and who did not."""

    workers: tuple[Worker, ...] = ()
    absent: tuple[Skipped, ...] = ()

    def contenders(
        self, wanted: Collection[str], weights: Sequence[Tensor], bits: int, group_size: int, nbytes: int
    ) -> tuple[list[Implementation], list[Skipped]]:
        """The wanted peers as contenders that quantize these matrices, and those that cannot."""
        ready, absent = [], list(self.absent)
        for worker in self.workers:
            if worker.peer not in wanted:
                continue
            try:
                worker.prepare(weights, bits, group_size)
            except PeerError as error:
                absent.append(Skipped(title(worker.peer), str(error)))
                continue
            ready.append(
                Implementation(
                    title(worker.peer), worker.seconds, nbytes, f"version {worker.version}", is_peer=True
                )
            )
        return ready, absent


def title(peer: str) -> str:
    """What a peer is called among contenders."""
    return f"{peer} package"


@contextmanager
def started(folders: Mapping[str, Path], threads: int) -> Iterator[Peers]:
    """All peers that can be started; they end with this context.

    Args:
        folders: where a peer is to be imported from; others are looked for in this environment.
        threads: that each may use.
    """
    workers, absent = [], [Skipped(title(name), reason) for name, reason in NO_WORKER.items()]
    with ExitStack() as stack:
        for peer in PEERS:
            try:
                workers.append(stack.enter_context(_running(peer, folders.get(peer), threads)))
            except PeerError as error:
                absent.append(Skipped(title(peer), str(error)))
        yield Peers(tuple(workers), tuple(absent))


@contextmanager
def _running(peer: str, folder: Path | None, threads: int) -> Iterator[Worker]:
    if folder is None and peer in OWN_FOLDER:
        raise PeerError(
            f"not looked for: it has the name of our own package; give its folder with --peers {peer}=<folder>"
        )
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as errors:
        command = [
            sys.executable,
            "-P",
            str(WORKER),
            peer,
            str(threads),
            *([] if folder is None else [str(folder.resolve())]),
        ]
        process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors, text=True, cwd=scratch)
        with process:  # leaving closes its input, which ends it
            yield Worker(peer, process, errors, Path(scratch))
