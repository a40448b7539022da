"""Progress display as a function that wraps an iterable, like tqdm; the library itself never prints."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")
Description = str | Callable[[], str]
"""Words beside a bar; a function of them is called again after each item."""


class Progress(Protocol):
    """A function that yields `items` while showing how many of `total` are done."""

    def __call__(self, items: Iterable[T], description: Description, total: int) -> Iterable[T]: ...


def silent(items: Iterable[T], description: Description, total: int) -> Iterable[T]:
    """Return the items themselves, and show nothing."""
    return items
