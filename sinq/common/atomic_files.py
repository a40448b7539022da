"""Atomic file replacement: a file is written beside its final path, made durable, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH = ".tmp"
"""Suffix of unfinished files. After a kill -9 one may be left; nothing reads it."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch file that is renamed to `path` when the block succeeds, else deleted (also on Ctrl-C).

    A process that has opened or mapped the previous file keeps the previous content. Missing folders are
    created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SCRATCH)
    os.close(handle)
    try:
        yield Path(name)
        _flush(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
        _flush(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
