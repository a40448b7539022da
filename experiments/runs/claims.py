"""Claims: of all processes that share a results folder, on one machine or many, only one is at work on a run.

A claim is a file, `.claims/<run_id>`, that names its owner (host and process) and is touched every few
seconds while the owner lives. It is free again when the owner is done, or dead. Processes on the owner's
machine see its death at once; other machines, which share only the folder, see it when the file has not been
touched for `EXPIRES` seconds. Clocks of machines need not agree: each waits by its own clock. filelock's
`SoftFileLease` does this; the file system only has to create a file exclusively.

An owner that was stopped for longer than `EXPIRES` and continues may find its run done by another process.
Both have the same row, and the last one written stays.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from experiments.common.files import sweep_up
from experiments.results.record import runs_dir, writing

log = logging.getLogger(__name__)

EXPIRES, HEARTBEAT, POLL = 120.0, 10.0, 0.2
"""Seconds until an untouched claim is void, between touches, and between checks of a foreign claim."""


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
            log.info("waiting: another process is at work on run %s", run_id)
            lease.acquire(poll_interval=POLL)
    try:
        sweep_up(runs_dir(results_dir), f".{run_id}.*")
        yield
    finally:
        lease.release()
