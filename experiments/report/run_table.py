"""The comparison table: one line per finished run, each cell with a text and a sort key."""

from dataclasses import dataclass
from typing import Any

from experiments.compare.paired import Comparison
from experiments.report.comparable import Entry, Group
from experiments.results import columns, flat
from experiments.results.names import subject
from experiments.results.record import Row

Cells = dict[str, "Cell"]


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and the number or text it is sorted by (None: last)."""

    words: str
    sort: float | str | None

    @property
    def key(self) -> str | None:
        """The sort key as the page has it: empty for None, and None where the text is the key."""
        key = (
            ""
            if self.sort is None
            else f"{self.sort:.9g}"
            if isinstance(self.sort, float)
            else str(self.sort)
        )
        return None if key == self.words else key


@dataclass(frozen=True)
class Record:
    """A line of the table."""

    run_id: str
    filters: dict[str, str]
    """Menu of the page → the run's value in it."""
    cells: Cells


@dataclass(frozen=True)
class Table:
    """Headings, lines and menus of the comparison table."""

    headings: dict[str, bool]
    """Heading → True for a column of numbers; in order."""
    records: tuple[Record, ...]
    menus: dict[str, tuple[str, ...]]


def table(groups: list[Group], compared: dict[str, Comparison]) -> Table:
    """Return the table of all runs of all groups; columns without any value are left out.

    Args:
        compared: run id → comparison with the reference.
    """
    entries = [(group, entry) for group in groups for entry in group.entries]
    cells = _metrics([entry.row for _, entry in entries])
    records = tuple(
        _record(group, entry, of_row, compared.get(entry.row["run_id"]))
        for (group, entry), of_row in zip(entries, cells, strict=True)
    )
    every = list(dict.fromkeys(heading for record in records for heading in record.cells))
    used = [heading for heading in every if any(record.cells[heading].sort is not None for record in records)]
    numbers = {
        heading: not any(isinstance(record.cells[heading].sort, str) for record in records)
        for heading in used
    }
    names = records[0].filters if records else {}
    menus = {name: tuple(sorted({record.filters[name] for record in records})) for name in names}
    return Table(numbers, records, menus)


def _record(group: Group, entry: Entry, metrics: Cells, comparison: Comparison | None) -> Record:
    row, facts = entry.row, flat.facts(entry.row)
    filters = {"method": str(facts["method"]), "model and text": subject(row)}
    cells = {
        "run": Cell(entry.name, entry.name),
        "model and text": Cell(group.title, group.title),
        **{name: _fact(facts[name]) for name in ("method", "bits", "group_size", "calibrated")},
        **metrics,
        **_against(comparison),
        "id": Cell(row["run_id"], row["run_id"]),
    }
    return Record(row["run_id"], filters, cells)


def _fact(value: Any) -> Cell:
    if value is None:
        return Cell(columns.ABSENT, None)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", "yes" if value else "no")
    return Cell(str(value), value)


def _metrics(rows: list[Row]) -> list[Cells]:
    """Return the metrics of each row; the numbers of a column have one format."""
    cells: list[Cells] = [{} for _ in rows]
    for metric in columns.metrics(rows):
        values = [metric.of(row) for row in rows]
        heading = " ".join(metric.heading.split())
        for of_row, value, words in zip(cells, values, columns.cells(rows, metric), strict=True):
            of_row[heading] = Cell(words.replace("\n", ", "), columns.number(value))
    return cells


def _against(comparison: Comparison | None) -> Cells:
    if comparison is None:
        return {heading: Cell("–", None) for heading in ("ΔNLL", "95 %", "verdict")}
    ends = comparison.interval
    return {
        "ΔNLL": Cell(f"{comparison.delta_nll:+.3f}", comparison.delta_nll),
        "95 %": Cell("–", None) if ends is None else Cell(f"[{ends[0]:+.3f}, {ends[1]:+.3f}]", ends[0]),
        "verdict": Cell(comparison.verdict.value, comparison.verdict.value),
    }
