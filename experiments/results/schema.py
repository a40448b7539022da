"""Schema of rows, checked at every read, and the migrations of rows of earlier versions.

A row is nested JSON, read one file at a time, and most of it may be absent: its metrics depend on the
evaluations of the run. So the schema (pydantic) has one class for each level of nesting, and gives the type
of every value that other modules use. What they cannot do without is required, so that a damaged row is named
where it is read, and no table, page or comparison meets it. Nothing is
converted, and a value that is not named here stays as it is. (pandera describes the columns of data frames:
it would see a row only after flattening, and name columns instead of paths.)

Changing the meaning or the path of a value → raise `SCHEMA` by one and add the migration from the previous
version to `MIGRATIONS`. Files on disk are never rewritten; they are migrated each time they are read. A row
newer than this code is refused.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal, Required

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # before Python 3.12, pydantic refuses typing's

from experiments.results.former_rows import from_schema_1

SCHEMA = 2

Row = dict[str, Any]
Migration = Callable[[Row], Row]
MIGRATIONS: Mapping[int, Migration] = MappingProxyType({1: from_schema_1})
"""Version → the function that turns its rows into rows of the next version. Version 1 is the first."""


def _positive(value: float) -> float:
    if value <= 0:  # not true of NaN, which rows of earlier versions may hold
        raise ValueError("must be above 0")
    return value


def _date(value: str) -> str:
    datetime.fromisoformat(value)
    return value


Number = float | None
Numbers = list[float]
Group = dict[str, Any]
Positive = Annotated[float, AfterValidator(_positive)]


class Perplexity(TypedDict, total=False):
    value: Required[Positive]
    dense: Positive | None
    kl: Number
    flip_rate: Number
    blocks_per_window: int
    divergence: Group
    windows: Required[int]
    windows_available: int
    seqlen: Required[int]


class Size(TypedDict, total=False):
    bits_per_weight: float
    model_nbytes: float


class Phase(TypedDict, total=False):
    tokens_per_second: Positive
    dense_tokens_per_second: Required[Positive]
    ratio: Positive


class Latency(TypedDict, total=False):
    prefill: Phase
    decode: Phase


class Compression(TypedDict, total=False):
    seconds_quantize: Required[float]
    seconds_statistics: Required[float]
    decisions: dict[str, int]


class ZeroShot(TypedDict, total=False):
    tasks: Required[dict[str, Group]]


class Metrics(TypedDict, total=False):
    perplexity: Perplexity
    size: Size
    latency: Latency
    compression: Compression
    zero_shot: ZeroShot
    memory: Group
    layer_error: Group
    operations: Group
    attention_entropy: Group
    stable_rank: Group
    scaling: Group
    unigram: Group
    pseudo_perplexity: Group
    coefficient_mixture: Group
    llama_cpp: Group


class Windows(TypedDict, total=False):
    window_nll: Numbers
    window_kl: Numbers
    window_flips: Numbers
    block_nll: Numbers
    window_divergence: Numbers
    window_same_top: Numbers
    window_delta_p: Numbers


class LayerErrors(TypedDict, total=False):
    relative_error: dict[str, float]


class Entropies(TypedDict, total=False):
    entropy: dict[str, float]


class StableRanks(TypedDict, total=False):
    stable_rank: dict[str, float]


class Rounds(TypedDict, total=False):
    dense: list[Positive]
    compressed: list[Positive]


class Phases(TypedDict, total=False):
    prefill: Rounds
    decode: Rounds


class Rounded(TypedDict, total=False):
    seconds: Phases


class Samples(TypedDict, total=False):
    perplexity: Windows
    latency: Rounded
    layer_error: LayerErrors
    attention_entropy: Entropies
    stable_rank: StableRanks


class Model(TypedDict, total=False):
    name: str
    dtype: Required[str]


class Named(TypedDict, total=False):
    name: Required[str]


class Identity(TypedDict, total=False):
    model: Required[Model]
    text: Required[Named]
    method: Required[Named]
    evaluation: Required[dict[str, Group]]
    device: Required[str]
    layers: Group
    calibration: Group


class Options(TypedDict, total=False):
    method: Required[Named]
    evaluation: dict[str, Group]
    layers: Group
    calibration: Group


class Protocol(TypedDict, total=False):
    source: Required[str]
    fingerprint: Required[str]
    tokens: Required[int]
    tokenizer: Required[str]
    bos: Required[str]
    dtype: Required[str]
    model_commit: Required[str | None]


class Provenance(TypedDict, total=False):
    finished_at: Required[Annotated[str, AfterValidator(_date)]]
    code: Group
    packages: Group
    device: str | None


class Cost(TypedDict, total=False):
    seconds: Required[float]
    peak_memory_bytes: Required[int]


class Failed(TypedDict, total=False):
    """A row of a failed run; most of it may be missing."""

    run_id: Required[str]
    name: Required[str]
    status: Required[Literal["failed"]]
    metrics: Required[Metrics]
    reason: str
    choices: dict[str, str]
    identity: Group
    options: Group
    provenance: Group


class Finished(TypedDict, total=False):
    """A row of a finished run, with all that other modules rely on."""

    run_id: Required[str]
    name: Required[str]
    status: Required[Literal["finished"]]
    metrics: Required[Metrics]
    samples: Samples
    identity: Required[Identity]
    options: Required[Options]
    choices: Required[dict[str, str]]
    protocol: Required[Protocol]
    provenance: Required[Provenance]
    dense_run_id: Required[str | None]
    cost: Cost


ROWS: Mapping[str, TypeAdapter[Any]] = MappingProxyType(
    {"finished": TypeAdapter(Finished), "failed": TypeAdapter(Failed)}
)


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
    try:
        row = migrated(row, migrations, schema)
    except (AttributeError, KeyError, TypeError) as error:
        raise RowError(f"it is of version {row['schema']}, and cannot be read as such: {error!r}") from error
    status = row.get("status")
    if not isinstance(status, str) or status not in ROWS:
        raise RowError(f"status is {status!r}, not one of {', '.join(ROWS)}")
    try:
        ROWS[status].validate_python(row, strict=True)
    except ValidationError as error:
        raise RowError("; ".join(_problem(each) for each in error.errors())) from error
    if status == "finished":
        _check_windows(row)
    return row


def _check_windows(row: Row) -> None:
    """Raise `RowError` where a list of values by window, or by block, has not as many as there were."""
    perplexity = row["metrics"].get("perplexity", {})
    windows, blocks = perplexity.get("windows"), perplexity.get("blocks_per_window", 1)
    for name, values in row.get("samples", {}).get("perplexity", {}).items():
        parts = {"window": 1, "block": blocks}.get(name.partition("_")[0])
        if None in (parts, windows) or len(values) == windows * parts:
            continue
        each = "" if parts == 1 else f" of {parts} blocks"
        raise RowError(f"samples.perplexity.{name} has {len(values)} values for {windows} windows{each}")


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
    return f"{path} is {str(error['input'])[:40]!r}: {error['msg'].removeprefix('Value error, ')}"
