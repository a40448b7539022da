"""Cache: derived files that are checked before they are used.

An entry is a file or a folder, `<cache_dir()>/<kind>/<name>`. Its name says what it was made from (`key`), so
other input is another entry. Beside it, `<name>.sha256` is a hash of its kind, its name and all its bytes. An
entry that was cut, overwritten, or exchanged with another one does not fit this hash: it is never used, and
is made again, with a line in the log. An entry without a hash (its writer was killed, or is older than this
rule) counts as missing.

A process compares an entry once, and again if the file's size or times change; reading it all takes a small
part of the time of making it. Then it may be mapped. The hash guards against accidents; who can write to the
folder can write a hash too.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from experiments.common.files import atomic_write, sweep_abandoned
from experiments.common.paths import cache_dir

log = logging.getLogger(__name__)

CHECKSUM = ".sha256"
LIBRARIES = ("tokenizers", "torch", "transformers")
"""Packages that decide the content of entries; another version makes other entries."""
Stamp = tuple[tuple[str, int, int, int, int], ...]


def key(**made_from: Any) -> str:
    """Return a name for what is made from these plain JSON values by the installed libraries."""
    content = made_from | {"libraries": _versions()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


@lru_cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache."""

    kind: str
    """Folder in the cache."""
    name: str

    @property
    def path(self) -> Path:
        return cache_dir() / self.kind / self.name

    @property
    def intact(self) -> bool:
        """Return whether the entry is there, with the content it was made with."""
        try:
            return self._checksum.read_bytes() == self._digest()
        except OSError:  # anyone may delete anything of the cache at any time, or own it
            return False

    def write(self, content: bytes) -> None:
        """Make the entry a file with this content; raise `ValueError` as `create` does."""
        with self.create() as file:
            file.write(content)

    @contextmanager
    def create(self) -> Iterator[IO[bytes]]:
        """Yield the entry's file; the entry is there once the block succeeds.

        Two processes may make an entry at once: each has a file of its own, and the last one stays.

        Raises:
            ValueError: the cache cannot be written; the message names the file.
        """
        with self._making(), atomic_write(self.path) as file:
            yield file

    def adopt(self, folder: Path) -> None:
        """Make the entry a folder, by moving `folder`, which must be on the cache's disk.

        No other process may make the entry at the same time.

        Raises:
            ValueError: the cache cannot be written; the message names the folder.
        """
        with self._making():
            if self.path.exists():
                shutil.rmtree(self.path)
            os.replace(folder, self.path)

    @property
    def _checksum(self) -> Path:
        return self.path.with_name(self.name + CHECKSUM)

    def _digest(self) -> bytes:
        """Return the hash that belongs to what is there now."""
        return _digest(f"{self.kind}/{self.name}", self.path, _stamp(self.path)).encode()

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Report a damaged entry, name the entry in errors of the block, and write the checksum after it."""
        try:
            if self._checksum.exists() and self.path.exists() and not self.intact:
                log.warning("%s is not what was written there; it is made again", self.path)
            _tidy(self.path.parent)
            yield
            with atomic_write(self._checksum) as file:
                file.write(self._digest())
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be written: {error.strerror or error};"
                " make room, or name another folder with SINQ_CACHE"
            ) from error


def _files(path: Path) -> dict[str, Path]:
    """Return all files of an entry by their names in it; a file is its only one, without a name."""
    if not path.is_dir():
        return {"": path}
    return {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if not file.is_dir()}


def _stamp(path: Path) -> Stamp:
    """Return what changes when a file of an entry is written to; raise `FileNotFoundError` without one."""
    stats = [(name, file.stat()) for name, file in _files(path).items()]
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


@lru_cache(maxsize=4096)
def _digest(label: str, path: Path, stamp: Stamp) -> str:
    """Return a hash of an entry's label and of the names, lengths and bytes of its files."""
    content = hashlib.sha256(label.encode())
    for (name, _, size, *_), file in zip(stamp, _files(path).values(), strict=True):
        content.update(f"\0{name}\0{size}\0".encode())
        with file.open("rb") as source:
            hashlib.file_digest(source, lambda: content)
    return content.hexdigest()


@lru_cache(maxsize=64)
def _tidy(folder: Path) -> None:
    """Remove what killed processes left half written in a folder; once in a process."""
    sweep_abandoned(folder)
