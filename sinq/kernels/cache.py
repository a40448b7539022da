"""Compiled kernels on disk, found by the content of all that was compiled into them.

Numba renews a cached function when its own file changes, but not when another file changes whose functions or
constants it compiles in. It finds the function by the path of its file, so a second checkout compiles
everything again. Here the folder of a kernel is

    <cache_dir()>/<module>-<digest>/

where the digest is of the module's file, of every file of `PACKAGES` that it imports, directly or indirectly,
and of the versions of Numba, llvmlite and the files themselves (`intact.py`). Numba itself distinguishes
signatures, processors and versions of Python. Only imports at the top of a file count: a kernel can take
nothing from any other import.
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
from numba.core import caching
from numba.core.caching import CacheImpl, _CacheLocator

from sinq.kernels.intact import IntactFiles

PACKAGES = {"sinq", "baselines"}
"""Packages whose kernels are cached here; kernels of other packages stay where Numba puts them."""
FORMAT = 1
"""Version of the files of a kernel; raise it when `intact.py` writes others."""
KEPT = 4
"""Digests kept per module, the last used ones: enough to work on a few branches alternately."""
NUMBAS = caching.IndexDataCacheFile


def cache_dir() -> Path:
    """Return `$NUMBA_CACHE_DIR`, or `$SINQ_CACHE/kernels`, or `sinq-harness/kernels` in the user's caches."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("SINQ_CACHE"):
        return Path(chosen).expanduser() / "kernels"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    return caches / "sinq-harness/kernels"


def install_locator() -> None:
    """Make Numba look here first. Call it before a kernel is decorated; a second call changes nothing."""
    if KernelLocator not in CacheImpl._locator_classes:
        CacheImpl._locator_classes.insert(0, KernelLocator)
        caching.IndexDataCacheFile = _files  # type: ignore[assignment, misc]


def _files(cache_path: str, filename_base: str, source_stamp: Any) -> caching.IndexDataCacheFile:
    """Return the files of a cached function: Numba's own for functions that are not kept here."""
    kind = IntactFiles if Path(cache_path).name == source_stamp else NUMBAS
    return kind(cache_path=cache_path, filename_base=filename_base, source_stamp=source_stamp)


class KernelLocator(_CacheLocator):
    """Location of one cached function of `PACKAGES`, in the interface that Numba requires."""

    def __init__(self, folder: Path, line: int) -> None:
        self._folder, self._line = folder, line

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Self | None:
        """Return the location of a function, or None, so that Numba chooses one.

        None is for functions of other packages, and where the folder cannot be made.
        """
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
        """Return the stamp that a cached function must match: the folder's name, which has the digest."""
        return self._folder.name

    def get_disambiguator(self) -> str:
        """Return the line of the function, which distinguishes functions of one name in one file."""
        return str(self._line)


@cache
def digest(root: Path, module: str) -> str:
    """Return a hash of the compilers' versions and of the files below `root` that a module compiles."""
    content = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {FORMAT}".encode())
    for name, file in sorted(sources(root, module).items()):
        content.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return content.hexdigest()[:16]


def sources(root: Path, module: str) -> dict[str, Path]:
    """Return the files of a module and of its imports, direct and indirect, by their names below `root`."""
    found: dict[str, Path] = {}
    pending = [_file(root, module)]
    while pending:
        file = pending.pop()
        if file is not None and (name := str(file.relative_to(root))) not in found:
            found[name] = file
            pending += _imported(root, file)
    return found


def _imported(root: Path, file: Path) -> Iterator[Path | None]:
    """Yield files that a file imports at its top; `from a import b` is the file of a.b, or else of a."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Import):
            yield from (_file(root, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (_file(root, name) or _file(root, node.module) for name in names)


@cache
def _file(root: Path, module: str) -> Path | None:
    """Return the file of a module of `PACKAGES`; None for any other name."""
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def prepare(folder: Path) -> None:
    """Make a folder, mark it as used, and remove the module's least recently used digests beyond `KEPT`."""
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    module = folder.name.rpartition("-")[0]
    by_use = sorted(folder.parent.glob(f"{module}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for unused in by_use[KEPT:]:
        shutil.rmtree(unused, ignore_errors=True)  # another process may remove it at the same time
