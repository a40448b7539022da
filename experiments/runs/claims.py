"""Claims: of all processes that share a results folder, on one machine or many, only one is at work on a run.

A claim is a file, `.claims/<run_id>`, that names its owner (host and process) and is touched every few seconds while the owner lives. It is
free again when the owner is done; when the owner's process is gone, which others on its machine see at once; and when nobody has touched
it for `EXPIRES` seconds, which is how machines see it that share only the folder. Clocks of machines need not agree: each waits by its own.
filelock's `SoftFileLease` does this; it needs nothing of the file system but that a file can be made once.

An owner that was stopped for longer and goes on may find its run done by another. Both have the same row, and the last one stays.
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
"""Seconds until an untouched claim is void, between touches, and between looks at another's claim."""


class BusyError(Exception):
    """Another process is at work on the run, and we were not to wait."""


@contextmanager
def claim(results_dir: Path, run_id: str, wait: bool = True) -> Iterator[None]:
    """Be the only process at work on a run. What a killed owner left half written is removed.

    Raises:
        BusyError: another one is, and `wait` is false.
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
