"""Numba's files of cached kernels, read only as they were written.

Numba unpickles whatever its files hold, and runs the machine code in them. A file that was cut stops every
run; one changed byte would be another kernel. Here a file ends in a hash of its place and content, and its
content names the signature that it was compiled for. What does not fit counts as missing: the kernel is
compiled again, its file is replaced, and the log says so, once for each folder.

A file that cannot be written, on a full disk, costs the time of compiling again.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from numba.core import caching

log = logging.getLogger(__name__)
DIGEST = hashlib.sha256().digest_size


class IntactFiles(caching.IndexDataCacheFile):
    """Index and machine code of one cached function, with a hash at the end of each file.

    Pickles end where they say, so Numba reads over the hash.
    """

    def load(self, key: Any) -> Any:
        """Return what was saved under a key; None where it is missing, damaged, or of another key."""
        saved_key, data = super().load(key) or (None, None)
        return data if saved_key == key else None

    def save(self, key: Any, data: Any) -> None:
        """Save the data of a key, if the disk takes it."""
        try:
            super().save(key, (key, data))
        except OSError as error:
            _report(f"compiled kernels are not kept: {self._cache_path}: {error.strerror or error}")

    def _load_index(self) -> Any:
        return super()._load_index() if _intact(Path(self._index_path)) else {}

    def _load_data(self, name: str) -> Any:
        return super()._load_data(name) if _intact(Path(self._data_path(name))) else None

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[IO[bytes]]:
        content = BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + _digest(Path(filepath), content.getvalue()))


def _intact(file: Path) -> bool:
    """Return whether a file is as it was written; a damaged one is reported."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return False
    if content[-DIGEST:] == _digest(file, content[:-DIGEST]):
        return True
    _report(f"{file.parent} has damaged kernels; they are compiled again")
    return False


def _digest(file: Path, content: bytes) -> bytes:
    name = f"{file.parent.name}/{file.name}"
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


@cache
def _report(line: str) -> None:
    """Log a line, once in a process."""
    log.warning("%s", line)
