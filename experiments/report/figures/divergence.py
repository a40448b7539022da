"""Distribution of the exact divergence from the dense model: percentiles, and means of kinds of positions.

Two runs of one mean may differ in kind: one is a little off everywhere, the other right at most positions and
lost at a few.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from experiments.report.comparable import Entry, Group
from experiments.report.figure import Figure, Rows
from experiments.report.figures.curves import curves
from experiments.report.figures.quality import is_floor
from experiments.report.figures.series import Series, facts
from experiments.results.paths import get_path

PERCENTILES = (
    ("median", "kl_median"), ("90 %", "kl_p90"), ("95 %", "kl_p95"), ("99 %", "kl_p99"),
    ("99.9 %", "kl_p99_9"), ("max.", "kl_max"),
)  # fmt: skip
KINDS = (
    ("by_confidence", "Divergence by confidence", "probability of the dense model's first token"),
    ("by_position", "Divergence by position", "position in the window"),
    ("by_frequency", "Divergence by frequency", "occurrences of the right token in the text"),
)
"""Sample of a row, title, axis."""
Curve = dict[str, list[Any]]
UP = "KL from the dense model, nats per token"


def figures(group: Group, series: Series) -> list[Figure]:
    """Return the percentiles of the divergence, and its means over kinds of positions, if there are any."""
    floors = [entry for entry in group.entries if is_floor(entry)]
    runs = [entry for entry in group.entries if not is_floor(entry)]
    rows = _rows(runs, series, _percentiles)
    note = "Percentiles over all positions. A divergence of 0 is not on the logarithmic axis."
    percentiles = curves(
        "percentiles", "Percentiles of the divergence", "share of positions below", UP,
        (*rows, *_references(floors, len(rows))), series, named=True, log=True, note=note,
    )  # fmt: skip
    note = "Each mark is the mean over a bucket of positions."
    note += " The noise floor is left out, as it lies far below." * bool(floors)
    means = [
        curves(sample, title, across, UP, _rows(runs, series, partial(_means, sample=sample)), series,
               named=True, log=True, note=note)
        for sample, title, across in KINDS
    ]  # fmt: skip
    return [figure for figure in (percentiles, *means) if figure]


def _rows(entries: Sequence[Entry], series: Series, curve: Callable[[Entry], Curve | None]) -> Rows:
    found = [(entry, curve(entry)) for entry in entries]
    kept = [(entry, each) for entry, each in found if each]
    return tuple(
        facts(entry, series) | {"curve": number, **each} for number, (entry, each) in enumerate(kept)
    )


def _references(floors: Sequence[Entry], count: int) -> Rows:
    """Return the percentiles of noise floors; their curves are numbered from `count`."""
    found = [(f"{entry.name} (noise floor)", _percentiles(entry)) for entry in floors]
    return tuple({"name": name, "curve": count + k, **each} for k, (name, each) in enumerate(found) if each)


def _percentiles(entry: Entry) -> Curve | None:
    divergence = get_path(entry.row["metrics"], "perplexity.divergence")
    if not divergence:
        return None
    values = [divergence.get(name) for _, name in PERCENTILES]
    return {"x": [words for words, _ in PERCENTILES], "y": [value or None for value in values]}


def _means(entry: Entry, sample: str) -> Curve | None:
    buckets = get_path(entry.row.get("samples", {}), f"perplexity.{sample}")
    if not buckets:
        return None
    names = [f"{each['from']:g}–{each['to']:g}" for each in buckets]
    return {"x": names, "y": [each["kl"] or None for each in buckets]}
