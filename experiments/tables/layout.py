"""From cells to text: headings, one string for each cell, and what is printed above and below. The same for every format.

A cell reads `17.20 (17.14, +0.06 ✓)`: ours, then the paper's and the difference. Every way to make what is missing, and every reason why
something is not compared, is a numbered note below.
"""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.compare.paired import Comparison
from experiments.compare.paired import Verdict as Outcome
from experiments.tables.cell import Cell, Filled, Judgement
from experiments.tables.spec import Column, Table

SIGNS = {Judgement.reproduced: "✓", Judgement.differs: "✗", Judgement.untrusted: "?", Judgement.refused: "≠"}
ABSENT = "–"
DECIDED, UNDECIDED = (Outcome.better, Outcome.worse), "≈"


@dataclass(frozen=True)
class Text:
    """What stands in one place, and whether in bold."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Layout:
    """A table as text."""

    title: str
    headings: tuple[tuple[str, str], ...]
    """Of each column: the heading over several, empty where there is none, and its own."""
    lines: tuple[tuple[Text, ...], ...]
    labels: int
    """How many columns at the left hold labels instead of figures."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def grouped(self) -> bool:
        return any(group for group, _ in self.headings)


def lay_out(filled: Filled) -> Layout:
    """The text of a filled table."""
    table, notes = filled.table, _Notes()
    sections = any(line.section for line in table.rows)
    lines, previous = [], None
    for line, cells in zip(table.rows, filled.cells, strict=True):
        left = ([Text("" if line.section == previous else line.section)] if sections else []) + [
            Text(line.label)
        ]
        texts = [
            show(cell, column, table, notes.number) for cell, column in zip(cells, table.columns, strict=True)
        ]
        lines.append((*left, *texts))
        previous = line.section
    headings = (
        [("", "")] * (len(left) - 1)
        + [("", "method")]
        + [(column.group, column.label) for column in table.columns]
    )
    below = (*_legend(filled), *table.notes, *notes.all())
    return Layout(_title(table), tuple(headings), tuple(lines), len(left), filled.warnings, below)


class _Notes:
    """Notes by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, note: str) -> int:
        return self._numbers.setdefault(note, len(self._numbers) + 1)

    def all(self) -> list[str]:
        return [f"[{number}] {note}" for note, number in self._numbers.items()]


def show(cell: Cell, column: Column, table: Table, number: Callable[[str], int]) -> Text:
    """One cell."""
    decimals = table.decimals if column.decimals is None else column.decimals
    mark = f" [{number(cell.note)}]" if cell.note else ""
    if cell.comparison is not None:
        return Text(difference(cell.comparison, decimals) + mark)
    ours = ABSENT if cell.ours is None else figure(cell.ours, decimals)
    if cell.paper is None:
        return Text(ours + mark, cell.best)
    distance = "" if cell.difference is None else f", {cell.difference:+.{decimals}f}"
    sign = f" {SIGNS[cell.verdict]}" if cell.verdict in SIGNS else ""
    return Text(f"{ours} ({figure(cell.paper, decimals)}{distance}{sign}){mark}", cell.best)


def difference(comparison: Comparison, decimals: int) -> str:
    """A difference in mean NLL and its interval; marked where it says nothing."""
    own, low, high = (
        f"{value:+.{decimals}f}" for value in (comparison.delta_nll, comparison.low, comparison.high)
    )
    return f"{own} [{low}, {high}]{'' if comparison.verdict in DECIDED else f' {UNDECIDED}'}"


def figure(value: float, decimals: int) -> str:
    """With so many digits after the point; from 1,000 on with none."""
    return f"{value:.{decimals}f}" if abs(value) < 1000 else f"{value:,.0f}"


def _title(table: Table) -> str:
    source = table.source
    return (
        table.title
        if source is None
        else f"{table.title} ({source.paper}{source.version}, table {source.table})"
    )


def _legend(filled: Filled) -> list[str]:
    """What the signs mean, of those that are there."""
    table, cells = filled.table, [cell for line in filled.cells for cell in line]
    seen = [
        verdict
        for verdict in SIGNS
        if any(cell.verdict is verdict and cell.paper is not None for cell in cells)
    ]
    told = []
    if any(cell.paper is not None for cell in cells):
        signs = [f"{SIGNS[verdict]} {verdict.value}" for verdict in seen]
        told.append("; ".join(["ours (the paper's, ours less the paper's)", *signs]) + _tolerance(table))
    if any(cell.best for cell in cells):
        told.append(
            "bold: better than every other one measured in its section, by the 95 % interval of the paired difference"
        )
    if any(cell.comparison is not None and cell.comparison.verdict not in DECIDED for cell in cells):
        told.append(f"{UNDECIDED} not distinguishable, by the same interval")
    return told


def _tolerance(table: Table) -> str:
    return f"; tolerance {100 * table.tolerance:g} % where nothing else is said" if table.tolerance else ""
