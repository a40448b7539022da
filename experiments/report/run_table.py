"""The comparison table as data: columns with keys and headings, and a record per finished run.

The page draws it (`assets/table.js`): it sorts, filters, chooses columns and copies. Here is what it cannot
know: the words of each cell, the key it is sorted by, which columns are worth showing first, and which values
are better.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.compare.paired import Comparison
from experiments.report.comparable import Entry, Group
from experiments.report.figures.quality import is_floor
from experiments.report.significance import BETTER, EXACT, WINDOWS, Vectors, vectors
from experiments.results import columns, flat
from experiments.results.record import Row

Cells = dict[str, "Cell"]
NONE = "none"
"""Value of a filter for a run that does not have it: the bits of the dense model."""
USUAL_METRICS = 7
"""Metrics that the page shows first: the most important ones (`results/columns.py`)."""
FACTS = {
    "method": "method", "bits": "bits", "group_size": "group size", "activation_bits": "input bits",
    "kv_bits": "K/V bits", "calibrated": "calibrated",
}  # fmt: skip
"""Key of a fact of a row → heading."""
FILTERS = {**FACTS, "model": "model", "text": "text"}
ABOUT = {
    "delta_nll": "difference in mean NLL to the group's reference, nats per token; below 0 is better",
    "interval": "its paired 95 % interval",
    "verdict": "whether the interval holds 0",
    "decode": "sorted by the ratio to the dense model",
    "prefill": "sorted by the ratio to the dense model",
}


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and the number or text it is sorted by (None: last)."""

    words: str
    sort: float | str | None


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    key: str
    """Name in the address of the page."""
    heading: str
    number: bool
    usual: bool
    """Shown until the reader chooses columns."""
    better: str = ""
    """"low" or "high"; empty where no value is better than another."""
    judged: str = ""
    """"exact" or "paired"; empty where a difference of two values has no interval here."""
    about: str = ""


@dataclass(frozen=True)
class Record:
    """A line of the table."""

    run_id: str
    group: str
    """Key of the group: only runs of one group are compared."""
    ranked: bool
    """False for dense models and noise floors: no value of theirs is the best of a column."""
    filters: dict[str, str]
    """Key of a filter → the run's value."""
    cells: Cells
    vectors: Vectors = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Columns and lines of the comparison table, and the filters that have more than one value."""

    columns: tuple[Column, ...]
    records: tuple[Record, ...]
    filters: dict[str, tuple[str, ...]]


def table(groups: list[Group], compared: dict[str, Comparison]) -> Table:
    """Return the table of all runs of all groups; columns without any value are left out.

    Args:
        compared: run id → comparison with the reference.
    """
    entries = [(group, entry) for group in groups for entry in group.entries]
    rows = [entry.row for _, entry in entries]
    metrics = columns.metrics(rows)
    apart = [each for group in groups for each in vectors(group.rows)]
    records = tuple(
        _record(group, entry, of_row, compared.get(entry.row["run_id"]), found)
        for (group, entry), of_row, found in zip(entries, _metrics(rows, metrics), apart, strict=True)
    )
    return Table(tuple(_columns(metrics, records, several=len(groups) > 1)), records, _filters(records))


def _columns(
    metrics: Sequence[columns.Metric], records: tuple[Record, ...], several: bool
) -> Iterator[Column]:
    """Yield the columns in which some record has a value."""
    for key, heading, usual in _headings(metrics, several):
        sorts = [record.cells[key].sort for record in records]
        if any(each is not None for each in sorts):
            number = not any(isinstance(each, str) for each in sorts)
            judged = "exact" if key in EXACT else "paired" if key in WINDOWS else ""
            yield Column(key, heading, number, usual, BETTER.get(key, ""), judged, ABOUT.get(key, ""))


def _headings(metrics: Sequence[columns.Metric], several: bool) -> list[tuple[str, str, bool]]:
    """Return key, heading and usual of all columns in order, the headline metrics first."""
    order = sorted(metrics, key=lambda metric: -metric.importance)
    usual = {metric.key for metric in order[:USUAL_METRICS]}
    numbers = [(each.key, " ".join(each.heading.split()), each.key in usual) for each in order]
    facts = [(key, heading, False) for key, heading in FACTS.items()]
    return [
        ("run", "run", True), ("model_and_text", "model and text", several), *numbers[:1],
        ("delta_nll", "ΔNLL", True), ("interval", "95 %", False), ("verdict", "verdict", False), *numbers[1:],
        *facts, ("finished", "finished", False), ("id", "id", False),
    ]  # fmt: skip


def _record(
    group: Group, entry: Entry, metrics: Cells, comparison: Comparison | None, found: Vectors
) -> Record:
    row, facts = entry.row, flat.facts(entry.row)
    cells = {
        "run": Cell(entry.name, entry.name),
        "model_and_text": Cell(group.title, group.title),
        **metrics,
        **_against(comparison),
        **{name: _fact(facts[name]) for name in FACTS},
        "finished": _fact((row.get("provenance") or {}).get("finished_at")),
        "id": Cell(row["run_id"], row["run_id"]),
    }
    filters = {name: NONE if (value := facts[name]) is None else _fact(value).words for name in FILTERS}
    ranked = not entry.is_dense and not is_floor(entry)
    return Record(row["run_id"], group.key, ranked, filters, cells, found)


def _filters(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """Return the values of each filter in order, of those that tell runs apart."""
    every = {name: {record.filters[name] for record in records} for name in FILTERS}
    return {name: tuple(sorted(found, key=_rank)) for name, found in every.items() if len(found) > 1}


def _rank(value: str) -> tuple[bool, bool, float, str]:
    """Return a sort key: numbers by size, then words, at last runs without the fact."""
    number = value.replace(".", "", 1).isdigit()
    return value == NONE, not number, float(value) if number else 0.0, value


def _fact(value: Any) -> Cell:
    if value is None:
        return Cell(columns.ABSENT, None)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", "yes" if value else "no")
    return Cell(str(value), value if isinstance(value, int | float) else str(value))


def _metrics(rows: list[Row], metrics: Sequence[columns.Metric]) -> list[Cells]:
    """Return the metrics of each row; the numbers of a column have one format."""
    cells: list[Cells] = [{} for _ in rows]
    for metric in metrics:
        values = [metric.of(row) for row in rows]
        for of_row, value, words in zip(cells, values, columns.cells(rows, metric), strict=True):
            of_row[metric.key] = Cell(words.replace("\n", ", "), columns.number(value))
    return cells


def _against(comparison: Comparison | None) -> Cells:
    if comparison is None:
        return {key: Cell(columns.ABSENT, None) for key in ("delta_nll", "interval", "verdict")}
    ends = comparison.interval
    words = columns.ABSENT if ends is None else f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"
    return {
        "delta_nll": Cell(f"{comparison.delta_nll:+.3f}", comparison.delta_nll),
        "interval": Cell(words, None if ends is None else ends[0]),
        "verdict": Cell(comparison.verdict.value, comparison.verdict.value),
    }
