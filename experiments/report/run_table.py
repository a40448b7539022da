"""The comparison table: one line per finished run, each cell with a text and a sort key."""

from dataclasses import dataclass
from typing import Any

from experiments.compare.paired import Comparison
from experiments.report.comparable import Entry, Group, title
from experiments.results.overview import COLUMNS, cell
from experiments.results.record import Row, get_path

Cells = dict[str, "Cell"]


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and the number or text it is sorted by (None: last)."""

    words: str
    sort: float | str | None


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
    records = tuple(
        _record(group, entry, compared.get(entry.row["run_id"]))
        for group in groups
        for entry in group.entries
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


def _record(group: Group, entry: Entry, comparison: Comparison | None) -> Record:
    row = entry.row
    filters = {"method": row["choices"].get("method", row["name"]), "model and text": title(row)}
    cells = {
        "run": Cell(entry.name, entry.name),
        "model and text": Cell(group.title, group.title),
        **{heading.replace("\n", " "): _metric(row, path, style) for heading, path, style in COLUMNS},
        **_against(comparison),
        "id": Cell(row["run_id"], row["run_id"]),
    }
    return Record(row["run_id"], filters, cells)


def _against(comparison: Comparison | None) -> Cells:
    if comparison is None:
        return {heading: Cell("–", None) for heading in ("ΔNLL", "95 %", "verdict")}
    ends = comparison.interval
    return {
        "ΔNLL": Cell(f"{comparison.delta_nll:+.3f}", comparison.delta_nll),
        "95 %": Cell("–", None) if ends is None else Cell(f"[{ends[0]:+.3f}, {ends[1]:+.3f}]", ends[0]),
        "verdict": Cell(comparison.verdict.value, comparison.verdict.value),
    }


def _metric(row: Row, path: str, style: str) -> Cell:
    value: Any = get_path(row["metrics"], path)
    if isinstance(value, dict):  # a speed: its ratio to the dense model's can be set beside other rows'
        value = value.get("ratio")
    return Cell(cell(row, path, style).replace("\n", ", "), value)
