"""Files that are there whole or not at all: written beside their place, made durable, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH = ".tmp"
"""How the names of files under way end. After a kill -9 one may be left; nothing reads it."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch file that takes the name `path` when the block ends well, and is deleted otherwise (also on Ctrl-C).

    Whoever still reads, or has mapped, the file there was before keeps its content.
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
