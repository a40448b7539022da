"""Writing files so that a reader sees the old one or the new one, never a part."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sinq.common.atomic_files import SCRATCH, replacing


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when the block ends well, and is deleted otherwise (also on Ctrl-C)."""
    with replacing(path) as scratch, scratch.open("wb") as file:
        yield file


def sweep_up(folder: Path, names: str) -> None:
    """Remove scratch files that killed processes left; `names` is a pattern of those that nobody alive is writing."""
    for left in folder.glob(names + SCRATCH):
        left.unlink(missing_ok=True)
