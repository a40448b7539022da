"""Claims: of all processes that share a results folder, on one machine or many, only one is at work on a run.

A claim is a file, `.claims/<run_id>`, that names its owner (host and process) and is touched every few
seconds while the owner lives. It is free again when the owner is done, or dead. Processes on the owner's
machine see its death at once; other machines, which share only the folder, see it when the file has not been
touched for `EXPIRES` seconds. Clocks of machines need not agree: each waits by its own clock. filelock's
`SoftFileLease` does this; the file system only has to create a file exclusively.

An owner that is killed between creating the file and writing to it leaves an empty one. filelock waits for
it forever, since its early versions wrote nothing. Here a file that was empty for `VOID` seconds gets a byte:
it is malformed then, and filelock takes it over.

An owner that was stopped for longer than `EXPIRES` and continues may find its run done by another process.
Both have the same row, and the last one written stays.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from filelock import SoftFileLease, Timeout

from experiments.common.files import sweep_up
from experiments.results.record import runs_dir, writing

log = logging.getLogger(__name__)

EXPIRES, HEARTBEAT, POLL = 120.0, 10.0, 0.2
"""Seconds until an untouched claim is void, between touches, and between checks of a foreign claim."""
VOID = 3.0
"""Seconds until an empty claim is void: a writer needs less than a millisecond."""


class BusyError(Exception):
    """Another process is at work on the run, and the caller asked not to wait."""


@contextmanager
def claim(results_dir: Path, run_id: str, wait: bool = True) -> Iterator[None]:
    """Claim a run for a block, and remove files that a killed owner left half written.

    Raises:
        BusyError: another process is at work on the run, and `wait` is false.
        ValueError: the folder cannot be written.
    """
    folder = results_dir / ".claims"
    with writing(results_dir):
        folder.mkdir(parents=True, exist_ok=True)
        lease = SoftFileLease(folder / run_id, lease_duration=EXPIRES, heartbeat_interval=HEARTBEAT)
        try:
            lease.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise BusyError(f"another process is at work on run {run_id}") from None
            log.info("waiting: another process is at work on run %s (its claim: %s)", run_id, folder / run_id)
            _wait(lease, folder / run_id)
    try:
        sweep_up(runs_dir(results_dir), f".{run_id}.*")
        yield
    finally:
        lease.release()


def _wait(lease: SoftFileLease, file: Path) -> None:
    """Acquire a claim when its owner is done or dead."""
    while True:
        before = _empty(file)
        try:
            lease.acquire(timeout=VOID, poll_interval=POLL)
            return
        except Timeout:
            if before is not None and before == _empty(file):
                _spoil(file, before)


def _empty(file: Path) -> int | None:
    """Return the inode of an empty file; None for any other, and without one."""
    try:
        stat = file.lstat()
    except FileNotFoundError:
        return None
    return stat.st_ino if stat.st_size == 0 and S_ISREG(stat.st_mode) else None


def _spoil(file: Path, inode: int) -> None:
    """Write a byte to an empty file, unless there is another one meanwhile."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
    except OSError:  # it is gone, or is somebody else's: then it is waited for
        return
    with open(handle, "wb", buffering=0) as claim_file:
        now = os.fstat(handle)
        if (now.st_ino, now.st_size) == (inode, 0):
            claim_file.write(b"?")
