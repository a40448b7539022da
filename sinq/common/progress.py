"""Showing progress, as a function: it wraps an iterable, like tqdm, and the library never prints."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Yields the items of `items` while showing how many of `total` are done."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterable[T]: ...


def silent(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Shows nothing."""
    return items
