"""Other packages, each in a separate process that quantizes on request through a pipe.

All peers run in `worker.py`. A worker imports the package from the folder given for it, or from this
environment, reads the matrices from a file, and times itself on request, so that it takes part in the same
rounds as the other contenders. Between requests it waits for input, and uses no CPU.

A package that is missing or fails is listed with the reason (`PeerError`) and stops nothing. To install them:

    pip install --no-deps --target peers/hqq hqq termcolor
    pip install --no-deps --target peers/sinq sinq    # never into this environment: our package has that name
    pip install --no-deps --target peers/autoawq autoawq
    python -m experiments.bench --peers hqq=peers/hqq,sinq=peers/sinq,asinq=peers/sinq,autoawq=peers/autoawq

The last two take a minute and more for a matrix on a CPU. Not covered: gptqmodel; the bench lists it as
absent.
"""

import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import IO

import torch
from torch import Tensor

from experiments.bench.peers.worker import PEERS
from experiments.bench.timing import Implementation, PeerError, Skipped
from experiments.common.conversation import Conversation

WORKER = Path(__file__).with_name("worker.py")
NO_WORKER = {"gptqmodel": "no worker is written for it: it quantizes whole models only, from their files"}
OWN_FOLDER = ("sinq", "asinq")


class Worker:
    """A running peer, made by `started`.

    Raises:
        PeerError: the package could not be loaded; other methods raise it where the work fails.
    """

    def __init__(self, peer: str, process: "subprocess.Popen[str]", errors: IO[bytes], scratch: Path) -> None:
        self.peer, self.scratch = peer, scratch
        self.talk = Conversation("its process", process, errors, PeerError)
        self.version: str = self.talk.answer()["version"]

    def prepare(self, weights: Sequence[Tensor], bits: int, group_size: int) -> None:
        """Send the matrices for `seconds` to the peer."""
        file = self.scratch / f"{self.peer}.pt"
        torch.save([weight.detach().float().contiguous() for weight in weights], file)
        self.talk.ask(file=str(file), bits=bits, group_size=group_size)

    def seconds(self) -> float:
        """Let the peer quantize all matrices once; return the seconds it reports."""
        return float(self.talk.ask()["seconds"])


@dataclass(frozen=True)
class Peers:
    """Workers that started, and peers that did not."""

    workers: tuple[Worker, ...] = ()
    absent: tuple[Skipped, ...] = ()

    def contenders(
        self, wanted: Collection[str], weights: Sequence[Tensor], bits: int, group_size: int, nbytes: int
    ) -> tuple[list[Implementation], list[Skipped]]:
        """Return the wanted peers as contenders that quantize these matrices, and the absent ones."""
        ready, absent = [], list(self.absent)
        for worker in self.workers:
            if worker.peer not in wanted:
                continue
            name, version = title(worker.peer), f"version {worker.version}"
            try:
                worker.prepare(weights, bits, group_size)
            except PeerError as error:
                absent.append(Skipped(name, str(error)))
                continue
            ready.append(Implementation(name, worker.seconds, nbytes, version, is_peer=True))
        return ready, absent


def title(peer: str) -> str:
    """Return the name of a peer among contenders."""
    return f"{peer} package"


@contextmanager
def started(folders: Mapping[str, Path], threads: int) -> Iterator[Peers]:
    """Start all peers that can be started; they end with this context.

    Args:
        folders: peer → folder to import it from; other peers are imported from this environment.
        threads: number of threads that each may use.
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
            "not looked for: it has the name of our own package;"
            f" give its folder with --peers {peer}=<folder>"
        )
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-P", str(WORKER), peer, str(threads)]
        if folder is not None:
            command.append(str(folder.resolve()))
        process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors, text=True, cwd=scratch)
        with process:  # on exit, its input is closed, which ends it
            yield Worker(peer, process, errors, Path(scratch))
