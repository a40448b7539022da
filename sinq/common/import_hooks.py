"""Modules that are imported as soon as another one is, and not before.

transformers takes seconds to import, so `import sinq` does not; what is registered with it waits until the
user's program imports it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def import_after(first: str, then: str) -> None:
    """Import the module `then` right after the module `first`: now, if that is imported already.

    What the import of `then` raises, the import of `first` raises.
    """
    if first in sys.modules:
        importlib.import_module(then)
    else:
        sys.meta_path.insert(0, _Waiting(first, then))


class _Waiting(MetaPathFinder):
    """A finder that finds nothing itself: it lets what the others find import one more module at its end."""

    def __init__(self, first: str, then: str) -> None:
        self._first, self._then = first, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._first:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_both(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(self._then)

        spec.loader.exec_module = execute_both  # type: ignore[method-assign]
        return spec
