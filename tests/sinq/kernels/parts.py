"""A package with a kernel, to be compiled in a process of its own."""

import sys
from importlib import import_module
from pathlib import Path

from sinq.kernels import cache

LIMIT = "FACTOR = {factor}\n"
HELPER = """
from numba import njit

from parts.limit import FACTOR


@njit
def added(x):
    return FACTOR * x + {added}
"""
KERNEL = """
from numba import njit

from parts import helper

added = helper.added


@njit(cache=True)
def total(x):
    return added(x)
"""


def package(root: Path, factor: int = 1, added: int = 1) -> Path:
    """A package whose kernel compiles in a function of another file, and that one a constant of a third."""
    folder = root / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "__init__": "",
        "limit": LIMIT.format(factor=factor),
        "helper": HELPER.format(added=added),
        "kernel": KERNEL,
    }
    for name, content in contents.items():
        (folder / f"{name}.py").write_text(content)
    return root


def call(root: Path) -> None:
    """Print the kernel of `package(root)` at 10, and the counts of reads from disk and compilations."""
    cache.PACKAGES.add("parts")
    cache.install_locator()
    sys.dont_write_bytecode = True  # Python takes an old .pyc for a file of the same second and size
    sys.path.insert(0, str(root))
    total = import_module("parts.kernel").total
    print(total(10), sum(total.stats.cache_hits.values()), sum(total.stats.cache_misses.values()))
