"""Attention as it is and as a method estimates it, side by side: what a row with `attention_maps` shows.

Rows of a map are groups of queries, of the first, the middle and the last attention below each other. Columns
are groups of keys, of the true attention on the left and the estimated one on the right.
"""

from typing import Any

from experiments.report.comparable import Group
from experiments.report.figure import Figure
from experiments.report.figures.heat_maps import heat_maps
from experiments.report.figures.series import Series, facts
from experiments.results.paths import get_path

LOWEST = 1e-3
"""Share of attention from which a cell is drawn."""
NOTE = (
    "Shares of attention, of groups of queries (down) to groups of keys (across), means over heads on one"
    " window, in the first, the middle and the last attention."
)
Names = tuple[tuple[str, ...], tuple[str, ...]]


def maps(group: Group, series: Series) -> list[Figure]:
    """Return a figure for the runs of each size of maps; none where no run has maps."""
    found: dict[Names, list[dict[str, Any]]] = {}
    for entry in group.entries:
        if content := get_path(entry.row.get("samples", {}), "attention_maps"):
            found.setdefault(_names(content), []).append(facts(entry, series) | {"values": _cells(content)})
    made = [
        heat_maps(
            f"attention_{index}" if index else "attention", "Attention, true and estimated", *names,
            tuple(rows), value="share of attention", across="true attention left, estimated (ê) right",
            log=True, note=NOTE,
        )
        for index, (names, rows) in enumerate(found.items())
    ]  # fmt: skip
    return [figure for figure in made if figure]


def _names(content: dict[str, Any]) -> Names:
    """Return names of rows and of columns, each used once."""
    bins = len(content["true"][0])
    rows = [f"{layer} q{k + 1}" for layer in map(_block, content["layers"]) for k in range(bins)]
    columns = [*(f"k{k + 1}" for k in range(bins)), "|", *(f"ê{k + 1}" for k in range(bins))]
    return tuple(rows), tuple(columns)


def _block(layer: str) -> str:
    return next((part for part in layer.split(".") if part.isdigit()), layer)


def _cells(content: dict[str, Any]) -> list[list[float | None]]:
    pairs = zip(content["true"], content["estimated"], strict=True)
    return [
        [*map(_drawn, left), None, *map(_drawn, right)]
        for true, estimated in pairs
        for left, right in zip(true, estimated, strict=True)
    ]


def _drawn(share: float) -> float | None:
    return share if share >= LOWEST else None
