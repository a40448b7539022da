"""Two runs side by side: different settings, different metrics, and changed layers.

The command is in `experiments/compare/__main__.py`. A run is named by its id, by the beginning of the id, by
its name ("sinq 4-bit g64"), or by a query of its settings: `method=sinq,bits=4,text=wikitext2`. The keys of a
query are the groups of `conf/`, and the paths in the row's identity or the last parts of these paths
(`method.grid.bits`, `bits`). A query has to match one finished run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common.intervals import mean_interval
from experiments.compare.paired import differences
from experiments.results.overview import distinct_names
from experiments.results.record import FINISHED, Row, flatten, get_path, layers_path, settings

MADE_BY = ("protocol.", "provenance.code.", "provenance.packages.", "provenance.device")
"""Paths of the facts about how a run was made, besides its settings."""
WINDOWED = {
    "perplexity.nll": "window_nll",
    "perplexity.kl": "window_kl",
    "perplexity.flip_rate": "window_flips",
}
"""Metric → name of its values by window, in the samples."""
ABSOLUTE = ("tokens_per_second", "dense_tokens_per_second")
"""Last parts of metrics that are from two times of a machine: two rows' are not subtracted."""
LAYERED = ("relative_error", "imbalance_after", "bits_per_weight")
"""Columns of the table of layers that are compared."""


@dataclass(frozen=True)
class Difference:
    """A metric of two runs."""

    name: str
    one: float
    other: float
    by_window: bool
    """True where both rows have a finite value of the metric for each window."""
    interval: tuple[float, float] | None
    """Paired 95 % interval of `other − one`; None where there are no values by window, or too few."""


def select(rows: list[Row], words: str) -> Row:
    """Return the one finished run that `words` name: an id, the beginning of an id, a name, or a query.

    Raises:
        ValueError: no run fits, or several; the message lists them, or the keys of a query.
    """
    finished = [row for row in rows if row["status"] == FINISHED]
    if "=" in words:
        fits = _query(finished, words)
        found = [row for row in finished if fits(row)]
    else:
        found = [row for row in finished if row["run_id"].startswith(words) or row["name"] == words]
    if len(found) == 1:
        return found[0]
    listed = found or finished
    full_names = zip(listed, distinct_names(listed), strict=True)
    names = "; ".join(f"{row['run_id']} ({full_name})" for row, full_name in full_names)
    introduction = "it may be: " if found else "there are: "
    raise ValueError(f"{words} means {len(found) or 'none'} of the finished runs; {introduction}{names}")


def matching(rows: list[Row], query: str) -> list[Row]:
    """Return the finished rows that fit a query.

    Raises:
        ValueError: no row fits, or the query has a key that no row has.
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
    """Return the predicate of a query `key=value,key=value`, whose keys some of `rows` must have."""
    pairs = [pair.partition("=")[::2] for pair in words.split(",")]
    known = sorted({key for row in rows for key in _keys(row) if "." not in key or key in words})
    for key, _ in pairs:
        if key not in known:
            raise ValueError(
                f"{key} in {words} is nothing that a run was chosen by; there are: {', '.join(known)}"
            )
    return lambda row: all(value in _keys(row).get(key, ()) for key, value in pairs)


def _keys(row: Row) -> dict[str, set[str]]:
    """Return the keys that a query can ask of a row, each with the values that match."""
    keys: dict[str, set[str]] = {key: {str(value)} for key, value in row["choices"].items()}
    for path, value in flatten(settings(row)).items():
        for key in {path, path.rpartition(".")[2]}:
            if key not in row["choices"]:
                keys.setdefault(key, set()).add(str(value))
    return keys


def changes(one: Row, other: Row) -> list[tuple[str, Any, Any]]:
    """Return the paths of settings, protocol and provenance in which two rows differ, with both values.

    None stands for a value that a row does not have.
    """
    first, second = _made_by(one), _made_by(other)
    return [
        (path, first.get(path), second.get(path))
        for path in {**first, **second}
        if first.get(path) != second.get(path)
    ]


def _made_by(row: Row) -> dict[str, Any]:
    facts = {path: value for path, value in flatten(row).items() if path.startswith(MADE_BY)}
    return flatten(settings(row)) | facts


def metrics(one: Row, other: Row) -> list[Difference]:
    """Return the numbers that both rows have.

    Where their protocols differ (`paired.differences`), metrics measured on text are left out.
    """
    first, second = flatten(one["metrics"]), flatten(other["metrics"])
    comparable = not differences(one, other)
    names = [
        name
        for name in first
        if _is_number(first[name]) and _is_number(second.get(name)) and name.split(".")[-1] not in ABSOLUTE
    ]
    return [
        Difference(name, first[name], second[name], *_interval(one, other, name))
        for name in names
        if comparable or not name.startswith(("perplexity.", "layer_error."))
    ]


def _interval(one: Row, other: Row, name: str) -> tuple[bool, tuple[float, float] | None]:
    """Return whether both rows have finite values of a metric for each window, and the interval."""
    path = f"perplexity.{WINDOWED.get(name)}"
    first, second = (get_path(row.get("samples", {}), path) for row in (one, other))
    if not first or not second or not np.isfinite([first, second]).all():
        return False, None
    return True, mean_interval(np.asarray(second) - np.asarray(first))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def layers(one: Row, other: Row, results_dir: Path) -> pd.DataFrame:
    """Return the layers that both runs have, indexed by name, the largest change of the first metric first.

    The columns are pairs: (metric, "one" | "other" | "difference"). The table is empty if nothing is shared.
    """
    tables = [_layers(row, results_dir) for row in (one, other)]
    shared = [
        column
        for column in ("output_error", *LAYERED)
        if all(column in table and table[column].notna().any() for table in tables)
    ]
    both = tables[0].index.intersection(tables[1].index)
    first, second = (table.loc[both, shared] for table in tables)
    parts = {"one": first, "other": second, "difference": second - first}
    joined = pd.concat(parts, axis="columns").swaplevel(axis="columns")
    if not shared or joined.empty:
        return pd.DataFrame()
    order = joined[shared[0], "difference"].abs().sort_values(ascending=False).index
    return joined.loc[order, [(column, part) for column in shared for part in parts]]


def _layers(row: Row, results_dir: Path) -> pd.DataFrame:
    """Return the table of a run's layers, indexed by name, with the `output_error` if it was measured."""
    path = layers_path(results_dir, row["run_id"])
    table = pd.read_csv(path).set_index("name") if path.exists() else pd.DataFrame()
    outputs = get_path(row.get("samples", {}), "layer_error.relative_error")
    return table.join(pd.Series(outputs, name="output_error", dtype=float), how="outer") if outputs else table
