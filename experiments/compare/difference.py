"""Two runs side by side: different settings, different metrics, and changed layers.

The command is in `experiments/compare/__main__.py`; `query.py` says how a run is named.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common.intervals import mean_interval
from experiments.compare.paired import differences
from experiments.results import record
from experiments.results.flat import unnested
from experiments.results.paths import flatten, get_path, settings
from experiments.results.record import Row

MADE_BY = ("protocol", "provenance")
"""Parts of a row with the facts about how a run was made, besides its settings."""
PROVENANCE = ("code", "packages", "device")
"""Facts of the provenance that may change a number; time and command do not."""
WINDOWED = {
    "perplexity.nll": "window_nll",
    "perplexity.kl": "window_kl",
    "perplexity.flip_rate": "window_flips",
    "perplexity.divergence.kl": "window_divergence",
    "perplexity.divergence.same_top": "window_same_top",
    "perplexity.divergence.delta_p": "window_delta_p",
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


def changes(one: Row, other: Row) -> list[tuple[str, Any, Any]]:
    """Return the paths of settings, protocol and provenance in which two rows differ, with both values.

    Methods of different classes differ by their names, and in the options that both have wherever these are:
    the bits of AWQ around RTN are those of its inner RTN. An option that only one class has is no difference.
    None stands for a part that a row does not have, such as a calibration.
    """
    return list(_changes("", _made_by(one), _made_by(other)))


def _made_by(row: Row) -> dict[str, Any]:
    """Return the settings of a row, its method without nesting, and the facts about how it was made."""
    facts: dict[str, Any] = settings(row)
    facts["method"] = unnested(facts.get("method"))
    made = {name: row[name] for name in MADE_BY if name in row}
    if isinstance(made.get("provenance"), dict):
        made["provenance"] = {name: made["provenance"].get(name) for name in PROVENANCE}
    return facts | made


def _changes(path: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    same_class = one.get("name") == other.get("name")
    shared = [key for key in one if key in other]
    keys = dict.fromkeys([*one, *other]) if same_class else ["name", *shared] if "name" in shared else shared
    for key in dict.fromkeys(keys):
        first, second = one.get(key), other.get(key)
        if first == second or (key == "version" and not same_class):
            continue
        if isinstance(first, dict) and isinstance(second, dict):
            yield from _changes(f"{path}{key}.", first, second)
        else:
            yield f"{path}{key}", _short(first), _short(second)


def _short(value: Any) -> Any:
    """Return a value in short: a part that one row lacks by its name, or as it is."""
    if not isinstance(value, dict):
        return value
    name = get_path(value, "text.name") or value.get("name")
    return name or ", ".join(f"{key}={item}" for key, item in flatten(value).items()) or "with defaults"


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
    table = record.read_layers(results_dir, row["run_id"])
    table = table.set_index("name") if len(table) else table
    outputs = get_path(row.get("samples", {}), "layer_error.relative_error")
    return table.join(pd.Series(outputs, name="output_error", dtype=float), how="outer") if outputs else table
