"""What a row must look like before anything is made of it, and how rows of earlier versions become rows of this one.

A row is nested JSON, read one file at a time, and most of it may be absent: which metrics there are depends on what was measured. So the
check is a list of places with the kind of value each must have *if it is there*, and of those without which a row is none. pandera, which
describes the columns of data frames, would see a row only after flattening, name columns instead of places, and cost a second of import.

Change what a place means or move it → raise `SCHEMA` by one and add the step from the version before to `MIGRATIONS`; files on disk
are never rewritten, they are migrated each time they are read. A row that is newer than this code is refused, not guessed at.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

SCHEMA = 1
STATUSES = ("finished", "failed")

Row = dict[str, Any]
Migration = Callable[[Row], Row]
MIGRATIONS: Mapping[int, Migration] = MappingProxyType({})
"""Version → what makes of its rows rows of the next version. Version 1 is the first."""

NUMBER, NUMBERS = (int, float), "numbers"
NEEDED: Mapping[str, type] = MappingProxyType({"run_id": str, "name": str, "status": str, "metrics": dict})
KINDS: Mapping[str, Any] = MappingProxyType(
    {
        **NEEDED,
        "choices": dict, "identity": dict, "samples": dict, "protocol": dict, "provenance": dict,
        "identity.model": dict, "identity.text": dict, "identity.method": dict, "identity.device": str,
        "metrics.perplexity": dict, "metrics.perplexity.value": NUMBER, "metrics.perplexity.dense": NUMBER,
        "metrics.perplexity.kl": NUMBER, "metrics.perplexity.flip_rate": NUMBER, "metrics.perplexity.windows": int,
        "metrics.size.bits_per_weight": NUMBER, "metrics.size.model_nbytes": NUMBER,
        "metrics.latency.prefill.ratio": NUMBER, "metrics.latency.decode.ratio": NUMBER,
        "metrics.compression.seconds_quantize": NUMBER, "metrics.compression.seconds_statistics": NUMBER,
        "samples.perplexity.window_nll": NUMBERS, "samples.perplexity.window_kl": NUMBERS, "samples.perplexity.window_flips": NUMBERS,
    }
)  # fmt: skip
"""Place → kind of value. None stands for "not measured" everywhere but in `NEEDED`."""


class RowError(ValueError):
    """A file that is no row; the message says why."""


class NewerRowError(RowError):
    """A row of a version this code does not know. It must not be replaced by one of this version."""


def checked(row: Any, migrations: Mapping[int, Migration] = MIGRATIONS, schema: int = SCHEMA) -> Row:
    """The row, migrated to this version.

    Raises:
        RowError: it is no row, or one of a newer version; the message names the places, the values and what was expected.
    """
    if not isinstance(row, dict):
        raise RowError(f"it holds a {type(row).__name__}, not a row")
    row = migrated(row, migrations, schema)
    problems = [problem for place, kind in KINDS.items() if (problem := _problem(row, place, kind))]
    if not problems and row["status"] not in STATUSES:
        problems = [f"status is {row['status']!r}, not {' or '.join(STATUSES)}"]
    if problems:
        raise RowError("; ".join(problems))
    return row


def migrated(row: Row, migrations: Mapping[int, Migration] = MIGRATIONS, schema: int = SCHEMA) -> Row:
    """The row as the current version has it, by as many steps as lie between."""
    version = row.get("schema")
    if not isinstance(version, int) or version < 1:
        raise RowError(f"schema is {version!r}, not a version from 1 to {schema}")
    if version > schema:
        raise NewerRowError(f"schema is {version}, newer than the {schema} this code knows; update the code")
    while version < schema:
        row = {**migrations[version](row), "schema": version + 1}
        version += 1
    return row


def _problem(row: Row, place: str, kind: Any) -> str | None:
    """What is wrong at a place, or None."""
    value: Any = row
    for key in place.split("."):
        if not isinstance(value, dict):
            return None  # the place above is of the wrong kind, and is told of there
        value = value.get(key)
    if value is None:
        return f"{place} is missing" if place in NEEDED else None
    return None if _is(value, kind) else f"{place} is {str(value)[:40]!r}, not {_called(kind)}"


def _is(value: Any, kind: Any) -> bool:
    if kind == NUMBERS:
        return isinstance(value, list) and all(_is(each, NUMBER) for each in value)
    return isinstance(value, kind) and not isinstance(value, bool)


def _called(kind: Any) -> str:
    return {NUMBERS: "a list of numbers", NUMBER: "a number", int: "a whole number", str: "a text", dict: "a group of values"}[kind]
