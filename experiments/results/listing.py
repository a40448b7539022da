"""The listing of `python -m experiments.results`: rows chosen, sorted, and shown as a table in some format.

Columns are known by short keys (`KEYS`), or by their names in the data frame (`record.load`), such as
`metrics.latency.decode.ratio`. Rows are sorted by model, text, method and bits where nothing else is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any

import pandas as pd

from experiments.common.fitted import ESSENTIAL, Column, clean
from experiments.results import columns, flat, names, notes
from experiments.results.frame import tabulate
from experiments.results.overview import metric_column, metric_columns
from experiments.results.paths import get_path
from experiments.results.schema import Row

Words = Callable[[Row], Any]
WORDS: Mapping[str, tuple[Words, int]] = {
    "run": (lambda row: row["run_id"], ESSENTIAL),
    "model": (lambda row: flat.name_of(row, "model"), 90),
    "text": (lambda row: flat.name_of(row, "text"), 85),
    "status": (lambda row: row["status"], 65),
    "windows": (lambda row: get_path(row, "metrics.perplexity.windows"), 55),
    "method": (lambda row: flat.facts(row)["method"], 5),
    "bits": (lambda row: flat.facts(row)["bits"], 5),
    "group_size": (lambda row: flat.facts(row)["group_size"], 5),
    "calibrated": (lambda row: flat.facts(row)["calibrated"], 5),
    "device": (lambda row: get_path(row, "identity.device"), 5),
    "date": (lambda row: (get_path(row, "provenance.finished_at") or "")[:10], 5),
}
"""Key of a column of words → its value, and its importance."""
USUAL = ("run", "name", "model", "text", "status", "windows")
"""Columns of words that are shown where nothing is asked."""
CONSTANT = ("model", "text", "status", "windows")
"""Columns of words that stand in one line instead, where all rows have one value."""
KEYS = (*WORDS, "name", *(metric.key for metric in columns.METRICS))


def arranged(rows: Sequence[Row], sort: str | None = None, falling: bool = False) -> list[Row]:
    """Return rows sorted by model, text, method and bits; or by a column, rows without a value last.

    Raises:
        ValueError: no row has the column.
    """
    usual = sorted(rows, key=_usual)
    if not sort:
        return usual
    values = dict(zip([row["run_id"] for row in usual], raw(usual, sort), strict=True))
    present = [row for row in usual if not _missing(values[row["run_id"]])]
    as_numbers = all(isinstance(values[row["run_id"]], int | float) for row in present)
    present.sort(
        key=lambda row: values[row["run_id"]] if as_numbers else str(values[row["run_id"]]), reverse=falling
    )
    return [*present, *(row for row in usual if _missing(values[row["run_id"]]))]


def _usual(row: Row) -> tuple[Any, ...]:
    """Return the key of the usual order: the dense model first, then each method from few bits to many."""
    facts = flat.facts(row)
    compressed = row["status"] != "finished" or row["dense_run_id"] is not None
    bits = facts["bits"] if isinstance(facts["bits"], int | float) else 99
    group = facts["group_size"] if isinstance(facts["group_size"], int) else 0
    text = (facts["model"], facts["text"])
    return (*text, compressed, str(facts["method"]), bits, group, row["name"], row["run_id"])


def raw(rows: Sequence[Row], key: str) -> list[Any]:
    """Return the values of a column.

    Raises:
        ValueError: no row has it; the message lists the keys.
    """
    if key in WORDS:
        return [WORDS[key][0](row) for row in rows]
    if key == "name":
        return names.method_names(rows)
    known = {metric.key: metric for metric in (*columns.METRICS, *columns.metrics(rows))}
    if key in known:
        return [columns.number(known[key].of(row)) for row in rows]
    frame = tabulate(list(rows))
    if key not in frame:
        raise ValueError(
            f"there is no column {key}; there are: {', '.join(dict.fromkeys([*KEYS, *known]))},"
            " and those of the data frame, such as metrics.latency.decode.ratio"
        )
    return list(frame[key])


def keys(rows: Sequence[Row]) -> list[str]:
    """Return the keys of all columns that some row has a value in."""
    every = dict.fromkeys([*WORDS, "name", *(metric.key for metric in columns.metrics(rows))])
    return [key for key in every if not all(map(_missing, raw(rows, key)))]


def chosen(rows: Sequence[Row], keys: Sequence[str] | None) -> list[Column]:
    """Return the columns of a listing.

    Args:
        rows: rows in the order of the lines.
        keys: keys of the columns; None for the usual ones.

    Raises:
        ValueError: a key is unknown.
    """
    if keys is None:
        return [*(_words(rows, key) for key in USUAL if key not in constants(rows)), *metric_columns(rows)]
    return [_column(rows, key) for key in keys]


def constants(rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns of words that have one value in all rows, with that value."""
    values = {key: list(map(_text, raw(rows, key))) for key in CONSTANT}
    return {key: found[0] for key, found in values.items() if len(set(found)) == 1}


def _column(rows: Sequence[Row], key: str) -> Column:
    known = {metric.key: metric for metric in (*columns.METRICS, *columns.metrics(rows))}
    return metric_column(rows, known[key]) if key in known else _words(rows, key)


def _words(rows: Sequence[Row], key: str) -> Column:
    values = raw(rows, key)
    importance = WORDS[key][1] if key in WORDS else ESSENTIAL
    floats = [value for value in values if isinstance(value, float) and not _missing(value)]
    cells = columns.words(values, "significant") if floats else map(_text, values)
    numeric = all(isinstance(value, int | float) or _missing(value) for value in values)
    return Column(key, tuple(cells), importance, right=numeric, wraps=key == "name")


def _text(value: Any) -> str:
    return columns.ABSENT if _missing(value) else clean(str(value))


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and isnan(value))


def failures(rows: Sequence[Row]) -> list[str]:
    """Return a line for each distinct reason of failed rows, after the rows that have it."""
    failed = [row for row in rows if row["status"] == "failed"]
    reasons = [
        (f"{row['run_id']} {clean(row['name'])}", notes.one_line(row.get("reason") or "no reason recorded"))
        for row in failed
    ]
    return [f"failed: {line}" for line in notes.once(reasons)]
