"""Schema of rows, checked at every read, and the migrations of rows of earlier versions.

A row is nested JSON, read one file at a time, and most of it may be absent: its metrics depend on the
evaluations of the run. So the schema (pydantic) has one class for each level of nesting, and gives the type
of every value that other modules use, *if the value is present*; None stands for "not measured". Nothing is
converted, and a value that is not named here stays as it is. (pandera describes the columns of data frames:
it would see a row only after flattening, and name columns instead of paths.)

Changing the meaning or the path of a value → raise `SCHEMA` by one and add the migration from the previous
version to `MIGRATIONS`. Files on disk are never rewritten; they are migrated each time they are read. A row
newer than this code is refused.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Required

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # before Python 3.12, pydantic refuses typing's

from experiments.results.former_rows import from_schema_1

SCHEMA = 2

Row = dict[str, Any]
Migration = Callable[[Row], Row]
MIGRATIONS: Mapping[int, Migration] = MappingProxyType({1: from_schema_1})
"""Version → the function that turns its rows into rows of the next version. Version 1 is the first."""

Number = float | None
Numbers = list[float] | None
Group = dict[str, Any] | None


class Perplexity(TypedDict, total=False):
    value: Number
    dense: Number
    kl: Number
    flip_rate: Number
    windows: int | None


class Size(TypedDict, total=False):
    bits_per_weight: Number
    model_nbytes: Number


class Phase(TypedDict, total=False):
    ratio: Number


class Latency(TypedDict, total=False):
    prefill: Phase | None
    decode: Phase | None


class Compression(TypedDict, total=False):
    seconds_quantize: Number
    seconds_statistics: Number


class Metrics(TypedDict, total=False):
    perplexity: Perplexity | None
    size: Size | None
    latency: Latency | None
    compression: Compression | None


class Windows(TypedDict, total=False):
    window_nll: Numbers
    window_kl: Numbers
    window_flips: Numbers


class Samples(TypedDict, total=False):
    perplexity: Windows | None


class Identity(TypedDict, total=False):
    model: Group
    text: Group
    method: Group
    device: str | None


class Whole(TypedDict, total=False):
    """A row."""

    run_id: Required[str]
    name: Required[str]
    status: Required[Literal["finished", "failed"]]
    metrics: Required[Metrics]
    samples: Samples | None
    identity: Identity | None
    options: Group
    choices: Group
    protocol: Group
    provenance: Group


WHOLE = TypeAdapter(Whole)


class RowError(ValueError):
    """A file is no row; the message says why."""


class NewerRowError(RowError):
    """A row is of a newer version than this code knows. It must not be replaced."""


def checked(row: Any, migrations: Mapping[int, Migration] = MIGRATIONS, schema: int = SCHEMA) -> Row:
    """Return the row, migrated to version `schema` and checked.

    Raises:
        RowError: it is no row; the message gives path, value and expected type of everything wrong.
        NewerRowError: its version is newer than `schema`.
    """
    if not isinstance(row, dict):
        raise RowError(f"it holds a {type(row).__name__}, not a row")
    row = migrated(row, migrations, schema)
    try:
        WHOLE.validate_python(row, strict=True)
    except ValidationError as error:
        raise RowError("; ".join(_problem(each) for each in error.errors())) from error
    return row


def migrated(row: Row, migrations: Mapping[int, Migration] = MIGRATIONS, schema: int = SCHEMA) -> Row:
    """Return the row, migrated version by version up to `schema`.

    Raises:
        RowError: its version is no whole number from 1 on.
        NewerRowError: its version is newer than `schema`.
    """
    version = row.get("schema")
    if not isinstance(version, int) or version < 1:
        raise RowError(f"schema is {version!r}, not a version from 1 to {schema}")
    if version > schema:
        raise NewerRowError(f"schema is {version}, newer than the {schema} this code knows; update the code")
    while version < schema:
        row = {**migrations[version](row), "schema": version + 1}
        version += 1
    return row


def _problem(error: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors as text: the path, the value, and what it should be."""
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{path} is missing"
    return f"{path} is {str(error['input'])[:40]!r}: {error['msg']}"
