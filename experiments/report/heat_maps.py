"""Layers as heat maps: rows are kinds of layer, columns decoder blocks; one map per run, one scale for all.

Kind and block are read from a layer's name: the first number is the block, the rest after it the kind. Where
several layers share both (experts of a mixture, whose numbers are removed) the map has their mean.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from statistics import fmean

import pandas as pd

from experiments.report.comparable import Group
from experiments.report.drawn import HeatMap, HeatMaps
from experiments.results.paths import get_path
from experiments.results.record import Row

Layers = dict[str, float]
"""Name → value."""
Place = tuple[str, str]
"""Kind and block of a layer."""
OUTSIDE = "–"
"""Block of a layer outside all blocks, such as the head."""

METRICS: tuple[tuple[str, str, bool, str], ...] = (
    ("relative_error", "Error of the weights, layer by layer", False, "‖W − Ŵ‖ / ‖W‖."),
    (
        "output_error", "Error of the outputs, layer by layer", False,
        "Relative error of each layer's output on held-out text.",
    ),
    (
        "imbalance_after", "Imbalance as the rounding sees it", True,
        "Largest over smallest standard deviation of rows and columns, scales divided out; 1 is balanced.",
    ),
)  # fmt: skip
"""Key, title, logarithmic, note."""


def maps(group: Group, tables: Mapping[str, pd.DataFrame]) -> list[HeatMaps]:
    """Return a figure per metric that any run has.

    Args:
        tables: run id → table of the run's layers.
    """
    rows = [(entry.row["run_id"], entry.name, entry.row) for entry in group.entries]
    return figures([(run, name, metrics(row, tables.get(run, pd.DataFrame()))) for run, name, row in rows])


def figures(runs: list[tuple[str, str, dict[str, Layers]]]) -> list[HeatMaps]:
    """Return a figure per metric that any run has; runs are given by id, name and metrics."""
    return [figure for key, title, log, note in METRICS if (figure := _figure(runs, key, title, log, note))]


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


def _figure(
    runs: list[tuple[str, str, dict[str, Layers]]], key: str, title: str, log: bool, note: str
) -> HeatMaps | None:
    drawn = {(run, name): _drawn(layers.get(key) or {}, log) for run, name, layers in runs}
    found = {run: _means(layers) for run, layers in drawn.items() if layers}
    if not found:
        return None
    every = list(dict.fromkeys(position for values in found.values() for position in values))
    kinds = tuple(dict.fromkeys(kind for kind, _ in every))
    blocks = tuple(
        sorted({block for _, block in every}, key=lambda block: (block == OUTSIDE, block.zfill(6)))
    )
    every_map = tuple(HeatMap(*run, _grid(values, kinds, blocks)) for run, values in found.items())
    return HeatMaps(key, title, _short(kinds), blocks, every_map, log, note)


def _drawn(layers: Layers, log: bool) -> Layers:
    """Return the values that have a shade: finite, and above 0 on a logarithmic scale.

    An all-zero layer has imbalance 0.
    """
    return {name: value for name, value in layers.items() if isfinite(value) and (value > 0 or not log)}


def _grid(
    values: dict[Place, float], kinds: tuple[str, ...], blocks: tuple[str, ...]
) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(values.get((kind, block)) for block in blocks) for kind in kinds)


def _means(layers: Layers) -> dict[Place, float]:
    together: dict[Place, list[float]] = {}
    for name, value in layers.items():
        together.setdefault(kind_and_block(name), []).append(value)
    return {position: fmean(values) for position, values in together.items()}


def _short(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the last parts of the kinds where they are distinct, else the kinds."""
    last = tuple(kind.rpartition(".")[2] for kind in kinds)
    return last if len(set(last)) == len(kinds) else kinds
