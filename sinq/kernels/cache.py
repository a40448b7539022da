"""Compiled kernels on disk, found by the content of all that was compiled into them.

Numba renews a cached function when its own file changes, not when a file does whose functions or constants
it compiles in, and finds it by the path of its file: a second checkout compiles everything again. Here the
place is

    <cache_dir()>/<module>-<digest>/

where the digest is of the module's file, of every file of ours that it imports, directly or not, and of the
versions of Numba and llvmlite. Numba itself tells apart signatures, processors and versions of Python. Only
imports at the top of a file count: a kernel can take nothing from any other.
"""

import ast
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Self

import llvmlite
import numba
from numba.core.caching import CacheImpl, _CacheLocator

PACKAGES = {"sinq", "baselines"}
"""Packages whose kernels are kept here; anyone else's stay where Numba puts them."""
KEPT = 4
"""Digests of one module that are kept, the last used: a few branches that are worked on in turn."""


def cache_dir() -> Path:
    """Return `$NUMBA_CACHE_DIR`, or `$SINQ_CACHE/kernels`, or `sinq-harness/kernels` in the user's caches."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("SINQ_CACHE"):
        return Path(chosen).expanduser() / "kernels"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    return caches / "sinq-harness/kernels"


def install_locator() -> None:
    """Make Numba look here first. Call it before a kernel is decorated; again changes nothing."""
    if KernelLocator not in CacheImpl._locator_classes:
        CacheImpl._locator_classes.insert(0, KernelLocator)


class KernelLocator(_CacheLocator):
    """The place of one function of `PACKAGES`, as Numba asks for it."""

    def __init__(self, folder: Path, line: int) -> None:
        self._folder, self._line = folder, line

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Self | None:
        """Return the place of a function; None, so that Numba chooses, for others' or where none can be made."""
        module = py_func.__module__
        if module.partition(".")[0] not in PACKAGES:
            return None
        root = Path(py_file).absolute().parents[module.count(".")]
        locator = cls(cache_dir() / f"{module}-{digest(root, module)}", py_func.__code__.co_firstlineno)
        try:
            prepare(locator._folder)
            return locator
        except OSError:
            return None

    def get_cache_path(self) -> str:
        """Return the folder that holds the function's files."""
        return str(self._folder)

    def get_source_stamp(self) -> str:
        """Return what a cached function must have been compiled from: the folder's name holds it."""
        return self._folder.name

    def get_disambiguator(self) -> str:
        """Return what tells apart functions of one name in one file."""
        return str(self._line)


@cache
def digest(root: Path, module: str) -> str:
    """Return a hash of what a module compiles, for files below `root`."""
    content = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for name, file in sorted(sources(root, module).items()):
        content.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return content.hexdigest()[:16]


def sources(root: Path, module: str) -> dict[str, Path]:
    """Return the files of a module and of those it imports, directly or not, by their names below `root`."""
    found: dict[str, Path] = {}
    ahead = [_file(root, module)]
    while ahead:
        file = ahead.pop()
        if file is not None and (name := str(file.relative_to(root))) not in found:
            found[name] = file
            ahead += _imported(root, file)
    return found


def _imported(root: Path, file: Path) -> Iterator[Path | None]:
    """Yield files that a file imports at its top; `from a import b` means a.b, or else what a holds."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Import):
            yield from (_file(root, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (_file(root, name) or _file(root, node.module) for name in names)


@cache
def _file(root: Path, module: str) -> Path | None:
    """Return the file of a module of ours; None for any other name."""
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def prepare(folder: Path) -> None:
    """Make a folder, mark it as used, and remove the module's digests that were not used for longest."""
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    module = folder.name.rpartition("-")[0]
    by_use = sorted(folder.parent.glob(f"{module}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for unused in by_use[KEPT:]:
        shutil.rmtree(unused, ignore_errors=True)  # another process may be at it too
