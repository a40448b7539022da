"""Two runs side by side: what was different, what came out, and which layers changed. The command is in `compare.py`.

A run is named by its id, by the beginning of it, by its name ("sinq 4-bit g64"), or by a query of what it was chosen by:
`method=sinq,bits=4,text=wikitext2`. The keys are the groups of `conf/`, and the places of the row's identity or the last parts of them
(`method.grid.bits`, `bits`). A query has to mean one finished run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common.intervals import bootstrap_interval
from experiments.compare.paired import differences
from experiments.results.overview import distinct_names
from experiments.results.record import FINISHED, Row, flatten, get_path, layers_path, settings

MADE_BY = ("protocol.", "provenance.code.", "provenance.packages.", "provenance.device")
"""Places that say how a run was made, besides its settings."""
WINDOWED = {
    "perplexity.nll": "window_nll",
    "perplexity.kl": "window_kl",
    "perplexity.flip_rate": "window_flips",
}
"""Metric → its values by window, in the samples."""
LAYERED = ("relative_error", "imbalance_after", "bits_per_weight")
"""Columns of the table of layers that are compared."""


@dataclass(frozen=True)
class Difference:
    """A metric of two runs. The interval, where samples by window allow one, is of `other − one`, paired, 95 %."""

    name: str
    one: float
    other: float
    interval: tuple[float, float] | None


def select(rows: list[Row], words: str) -> Row:
    """The one finished run that is meant.

    Raises:
        ValueError: there is none, or several; the message lists them, or the keys that may be asked for.
    """
    finished = [row for row in rows if row["status"] == FINISHED]
    fits = (
        _query(finished, words)
        if "=" in words
        else lambda row: row["run_id"].startswith(words) or row["name"] == words
    )
    found = [row for row in finished if fits(row)]
    if len(found) == 1:
        return found[0]
    listed = found or finished
    names = "; ".join(
        f"{row['run_id']} ({name})" for row, name in zip(listed, distinct_names(listed), strict=True)
    )
    raise ValueError(
        f"{words} means {len(found) or 'none'} of the finished runs; "
        + ("it may be: " if found else "there are: ")
        + names
    )


def matching(rows: list[Row], query: str) -> list[Row]:
    """Return the finished rows that fit a query.

    Raises:
        ValueError: there is none, or the query asks for what no row was chosen by.
    """
    finished = [row for row in rows if row["status"] == FINISHED]
    fits = _query(finished, query)
    found = [row for row in finished if fits(row)]
    if not found:
        raise ValueError(
            f"{query} fits none of {len(finished)} finished runs; a query is like method=sinq,bits=4"
        )
    return found


def _query(rows: list[Row], words: str) -> Callable[[Row], bool]:
    pairs = [each.partition("=")[::2] for each in words.split(",")]
    known = sorted({key for row in rows for key in _keys(row) if "." not in key or key in words})
    for key, _ in pairs:
        if key not in known:
            raise ValueError(
                f"{key} in {words} is nothing that a run was chosen by; there are: {', '.join(known)}"
            )
    return lambda row: all(value in _keys(row).get(key, ()) for key, value in pairs)


def _keys(row: Row) -> dict[str, set[str]]:
    """Everything a query can ask of a row: key → the values it answers to."""
    keys: dict[str, set[str]] = {key: {str(value)} for key, value in row["choices"].items()}
    for place, value in flatten(settings(row)).items():
        for key in {place, place.rpartition(".")[2]}:
            if key not in row["choices"]:
                keys.setdefault(key, set()).add(str(value))
    return keys


def changes(one: Row, other: Row) -> list[tuple[str, Any, Any]]:
    """Settings, and places of protocol and provenance, in which two rows differ, with both values; None where one has none."""
    own, its = _made_by(one), _made_by(other)
    return [
        (place, own.get(place), its.get(place))
        for place in {**own, **its}
        if own.get(place) != its.get(place)
    ]


def _made_by(row: Row) -> dict[str, Any]:
    return flatten(settings(row)) | {
        place: value for place, value in flatten(row).items() if place.startswith(MADE_BY)
    }


def metrics(one: Row, other: Row) -> list[Difference]:
    """Numbers both rows have; where their protocols differ (`compare.differences`), without those measured on text."""
    own, its = flatten(one["metrics"]), flatten(other["metrics"])
    comparable = not differences(one, other)
    names = [name for name in own if _is_number(own[name]) and _is_number(its.get(name))]
    return [
        Difference(name, own[name], its[name], _interval(one, other, name) if comparable else None)
        for name in names
        if comparable or not name.startswith(("perplexity.", "layer_error."))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _interval(one: Row, other: Row, name: str) -> tuple[float, float] | None:
    samples = f"perplexity.{WINDOWED[name]}" if name in WINDOWED else ""
    own, its = (get_path(row.get("samples", {}), samples) if samples else None for row in (one, other))
    return bootstrap_interval(np.asarray(its) - np.asarray(own)) if own and its else None


def layers(one: Row, other: Row, results_dir: Path) -> pd.DataFrame:
    """Layers both runs have, indexed by name: columns (metric, one | other | difference), the largest change of the first metric first."""
    tables = [_layers(row, results_dir) for row in (one, other)]
    shared = [
        column
        for column in ("output_error", *LAYERED)
        if all(column in table and table[column].notna().any() for table in tables)
    ]
    both = tables[0].index.intersection(tables[1].index)
    own, its = (table.loc[both, shared] for table in tables)
    joined = pd.concat({"one": own, "other": its, "difference": its - own}, axis="columns").swaplevel(
        axis="columns"
    )
    if not shared or joined.empty:
        return pd.DataFrame()
    order = joined[shared[0], "difference"].abs().sort_values(ascending=False).index
    return joined.loc[order, [(column, part) for column in shared for part in ("one", "other", "difference")]]


def _layers(row: Row, results_dir: Path) -> pd.DataFrame:
    path = layers_path(results_dir, row["run_id"])
    table = pd.read_csv(path).set_index("name") if path.exists() else pd.DataFrame()
    outputs = get_path(row.get("samples", {}), "layer_error.relative_error")
    return table.join(pd.Series(outputs, name="output_error", dtype=float), how="outer") if outputs else table
