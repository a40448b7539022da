"""Atomic writes: a reader sees the old file or the new file, never a part."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sinq.common.atomic_files import SCRATCH, abandoned, replacing


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that takes its name if the block succeeds, and is deleted otherwise (also on Ctrl-C)."""
    with replacing(path) as scratch, scratch.open("wb") as file:
        yield file


def sweep_up(folder: Path, names: str) -> None:
    """Remove scratch files that killed processes left.

    Args:
        folder: the folder to clean.
        names: a pattern of files that no living process is writing.
    """
    for left in folder.glob(names + SCRATCH):
        left.unlink(missing_ok=True)


def sweep_abandoned(folder: Path, names: str = ".*") -> None:
    """Remove scratch files and folders of processes that are gone.

    Args:
        folder: the folder to clean.
        names: a pattern of what they were writing; by default anything.
    """
    for scratch in folder.glob(names + SCRATCH):
        try:
            if not abandoned(scratch):
                continue
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        except FileNotFoundError:
            pass  # its process, or another one that sweeps, was faster
