"""Folders of models that are made here: once, by one process, and whole."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from experiments.common.cache import Entry
from experiments.common.files import sweep_abandoned
from sinq.common.atomic_files import SCRATCH, scratch_prefix


def made_once(entry: Entry, make: Callable[[Path, Path], None]) -> Path:
    """Return an entry's folder, made on first use, or again where it is damaged.

    It is compared with its checksum once in each process.

    Args:
        make: writes the content of a folder that is to be created, its first argument; the second is a folder
            for files that are thrown away.

    Raises:
        ValueError: the cache cannot be written, or what `make` raises.
    """
    if not entry.intact:
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry.path}.lock"):
            if not entry.intact:  # another process may have made it meanwhile
                _make(entry, make)
    return entry.path


def _make(entry: Entry, make: Callable[[Path, Path], None]) -> None:
    path = entry.path
    sweep_abandoned(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=scratch_prefix(path), suffix=SCRATCH) as scratch:
        made = Path(scratch) / "made"
        make(made, Path(scratch))
        entry.adopt(made)
