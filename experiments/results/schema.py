"""What a row must look like before anything is made of it, and how rows of earlier versions become rows of this one.

A row is nested JSON, read one file at a time, and most of it may be absent: which metrics there are depends on what was measured. So the
schema (pydantic) is one class for each level of nesting, and says of what is used elsewhere which kind of value it must be *if it is
there*; None stands for "not measured". Nothing is converted, and what is not named here is passed on as it is. (pandera describes the
columns of data frames: it would see a row only after flattening, and name columns instead of places.)

Change what a place means or move it → raise `SCHEMA` by one and add the step from the version before to `MIGRATIONS`; files on disk
are never rewritten, they are migrated each time they are read. A row that is newer than this code is refused, not guessed at.
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
"""Version → what makes of its rows rows of the next version. Version 1 is the first."""

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
    try:
        WHOLE.validate_python(row, strict=True)
    except ValidationError as error:
        raise RowError("; ".join(_problem(each) for each in error.errors())) from error
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


def _problem(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors: the place, the value, and what it should be."""
    place = ".".join(map(str, error["loc"]))
    return (
        f"{place} is missing"
        if error["type"] == "missing"
        else f"{place} is {str(error['input'])[:40]!r}: {error['msg']}"
    )
