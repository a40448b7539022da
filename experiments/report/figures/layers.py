"""Layers as heat maps: rows are kinds of layer, columns decoder blocks; one map per run, one scale for all.

Kind and block are read from a layer's name: the first number is the block, the rest after it the kind. Where
several layers share both (experts of a mixture, whose numbers are removed) the map has their mean.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from statistics import fmean
from typing import Any

import pandas as pd

from experiments.report.comparable import Group
from experiments.report.figure import Figure
from experiments.report.figures.heat_maps import heat_maps
from experiments.report.figures.series import Series, facts
from experiments.results.paths import get_path
from experiments.results.record import Row

Layers = dict[str, float]
"""Name → value."""
Place = tuple[str, str]
"""Kind and block of a layer."""
OUTSIDE = "–"
"""Block of a layer outside all blocks, such as the head."""
DIGITS = 4
"""Significant digits of a value: colours show two, the tables of layers have all."""

METRICS: tuple[tuple[str, str, str, bool, str], ...] = (
    ("relative_error", "Error of the weights, layer by layer", "‖W − Ŵ‖ / ‖W‖", False, ""),
    (
        "output_error", "Error of the outputs, layer by layer", "relative error", False,
        "Each layer's output on held-out text.",
    ),
    (
        "imbalance_after", "Imbalance as the rounding sees it", "imbalance", True,
        "Largest over smallest standard deviation of rows and columns, scales divided out; 1 is balanced.",
    ),
)  # fmt: skip
"""Key, title, values, logarithmic, note."""
Run = tuple[dict[str, Any], dict[str, Layers]]
"""Facts and metrics of a run."""


def figures(group: Group, series: Series, tables: Mapping[str, pd.DataFrame]) -> list[Figure]:
    """Return a figure per metric that any run has.

    Args:
        tables: run id → table of the run's layers.
    """
    empty = pd.DataFrame()
    return of_runs(
        [
            (facts(entry, series), metrics(entry.row, tables.get(entry.row["run_id"], empty)))
            for entry in group.entries
        ]
    )


def of_runs(runs: list[Run]) -> list[Figure]:
    """Return a figure per metric that any run has."""
    return [figure for metric in METRICS if (figure := _figure(runs, *metric))]


def metrics(row: Row, table: pd.DataFrame) -> dict[str, Layers]:
    """Map metrics to the layers' values, from a run's table and from the row itself."""
    found = {
        key: dict(zip(map(str, table["name"]), table[key].astype(float).tolist(), strict=True))
        for key in ("relative_error", "imbalance_after")
        if key in table
    }
    return found | {"output_error": get_path(row.get("samples", {}), "layer_error.relative_error") or {}}


@lru_cache(maxsize=100_000)
def kind_and_block(name: str) -> Place:
    """Return kind and block of a layer: "model.layers.3.self_attn.q_proj" → ("self_attn.q_proj", "3")."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return name, OUTSIDE
    return ".".join(part for part in parts[numbers[0] + 1 :] if not part.isdigit()), parts[numbers[0]]


def _figure(runs: list[Run], key: str, title: str, value: str, log: bool, note: str) -> Figure | None:
    drawn = [(about, _means(_drawn(layers.get(key) or {}, log))) for about, layers in runs]
    found = [(about, values) for about, values in drawn if values]
    every = list(dict.fromkeys(position for _, values in found for position in values))
    kinds = tuple(dict.fromkeys(kind for kind, _ in every))
    blocks = sorted({block for _, block in every}, key=lambda block: (block == OUTSIDE, block.zfill(6)))
    rows = tuple(
        about | {"values": [[_rounded(values.get((kind, block))) for block in blocks] for kind in kinds]}
        for about, values in found
    )
    return heat_maps(
        key, title, _short(kinds), blocks, rows, value=value, across="decoder block", log=log, note=note
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _drawn(layers: Layers, log: bool) -> Layers:
    """Return the values that have a shade: finite, and above 0 on a logarithmic scale.

    An all-zero layer has imbalance 0.
    """
    return {name: value for name, value in layers.items() if isfinite(value) and (value > 0 or not log)}


def _means(layers: Layers) -> dict[Place, float]:
    together: dict[Place, list[float]] = {}
    for name, value in layers.items():
        together.setdefault(kind_and_block(name), []).append(value)
    return {position: fmean(values) for position, values in together.items()}


def _short(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the last parts of the kinds where they are distinct, else the kinds."""
    last = tuple(kind.rpartition(".")[2] for kind in kinds)
    return last if len(set(last)) == len(kinds) else kinds
