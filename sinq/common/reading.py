"""JSON of a file as data: every entry has the type that is asked for, or an error names it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SHOWN = 80
"""Number of characters of a value that an error shows."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: the file is no JSON, nests too deep, or gives one name twice; the message names it.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}; it is incomplete or damaged") from error


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return content


def entry(content: Any, name: str, kind: type[T]) -> T:
    """Return an entry of a JSON object.

    Raises:
        ValueError: `content` is no object, lacks the entry, or has one of another type.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{shown(content)} is not an object with {name!r}")
    if name not in content:
        raise ValueError(f"{name!r} is missing beside {', '.join(map(repr, content)) or 'nothing'}")
    return typed(content[name], kind, name)


def typed(value: Any, kind: type[T], name: str) -> T:
    """Return a value, or raise `ValueError` if its type is another one; True is no whole number here."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {shown(value)}; it must be of type {kind.__name__}")
    return value


def counts(value: Any, name: str) -> list[int]:
    """Return a list of whole numbers ≥ 0 from JSON.

    Raises:
        ValueError: it is anything else.
    """
    numbers = typed(value, list, name)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{name} is {shown(value)}; it must be a list of whole numbers ≥ 0")
    return numbers


def options(kind: Any, content: Any, name: str) -> dict[str, Any]:
    """Return the options of a dataclass from JSON: known names, with values of the types of the defaults.

    Args:
        kind: a dataclass of numbers and truth values that all have defaults.
        name: of the options, for messages.

    Raises:
        ValueError: a name is unknown, or a value has another type or is not finite.
    """
    found = typed(content, dict, name)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for option, value in found.items():
        if option not in defaults:
            raise ValueError(f"{name} has the unknown option {option!r}; known are {', '.join(defaults)}")
        wanted = type(defaults[option])
        is_number = type(value) is int and wanted is float
        if not (type(value) is wanted or is_number) or (wanted is float and not math.isfinite(value)):
            raise ValueError(f"{name}.{option} is {shown(value)}; it must be of type {wanted.__name__}")
    return found


def notes(content: Any) -> dict[str, float]:
    """Return the notes of a value from JSON: numbers by name.

    Raises:
        ValueError: it is anything else.
    """
    found = typed(content, dict, "notes")
    for name, number in found.items():
        if not isinstance(number, int | float):
            raise ValueError(f"notes.{name} is {shown(number)}; it must be a number")
    return found


def shown(value: Any) -> str:
    """Return a value for a message, cut after some characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
