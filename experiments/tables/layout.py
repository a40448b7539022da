"""Text of a table, the same for every format: headings, cells, warnings above and notes below.

A cell reads `17.20 (17.14, +0.06 ✓)`: our value, then the paper's and the difference. Commands that make
missing runs, and reasons why values are not compared, are numbered notes below the table.
"""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.common.intervals import FEWEST_WINDOWS
from experiments.compare.paired import MARKS, Comparison
from experiments.compare.paired import Verdict as Outcome
from experiments.tables.cell import Cell, Filled, Judgement
from experiments.tables.spec import Column, Table

SIGNS = {Judgement.reproduced: "✓", Judgement.differs: "✗", Judgement.untrusted: "?", Judgement.refused: "≠"}
ABSENT = "–"
MEANINGS = {
    Outcome.not_distinguishable: "not distinguishable: the 95 % interval of the paired difference holds 0",
    Outcome.too_few_windows: f"no interval of a difference with fewer than {FEWEST_WINDOWS}",
}


@dataclass(frozen=True)
class Text:
    """Text of a cell or label, bold or not."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Layout:
    """A table as text."""

    title: str
    headings: tuple[tuple[str, str], ...]
    """Column → heading of its group (empty where there is none) and of the column."""
    lines: tuple[tuple[Text, ...], ...]
    labels: int
    """Number of columns at the left that hold labels instead of values."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def grouped(self) -> bool:
        """True where a column belongs to a group."""
        return any(group for group, _ in self.headings)


def lay_out(filled: Filled) -> Layout:
    """Return the text of a filled table."""
    table, notes = filled.table, _Notes()
    sections = any(line.section for line in table.rows)
    lines, previous = [], None
    for line, cells in zip(table.rows, filled.cells, strict=True):
        section = [Text("" if line.section == previous else line.section)] if sections else []
        pairs = zip(cells, table.columns, strict=True)
        texts = [show(cell, column, table, notes.number) for cell, column in pairs]
        lines.append((*section, Text(line.label), *texts))
        previous = line.section
    labels = [("", ""), ("", "method")] if sections else [("", "method")]
    headings = (*labels, *((column.group, column.label) for column in table.columns))
    below = (*_legend(filled), *table.notes, *notes.all())
    return Layout(_title(table), headings, tuple(lines), len(labels), filled.warnings, below)


class _Notes:
    """Numbered notes, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, note: str) -> int:
        """Return the number of a note, a new one for a new note."""
        return self._numbers.setdefault(note, len(self._numbers) + 1)

    def all(self) -> list[str]:
        """Return all notes with their numbers."""
        return [f"[{number}] {note}" for note, number in self._numbers.items()]


def show(cell: Cell, column: Column, table: Table, number: Callable[[str], int]) -> Text:
    """Return the text of a cell.

    Args:
        number: gives a note its number.
    """
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
    """Return a difference in mean NLL and its interval, marked where it decides nothing or there is none."""
    ends = ", ".join(f"{end:+.{decimals}f}" for end in comparison.interval or ())
    delta = f"{comparison.delta_nll:+.{decimals}f}"
    return " ".join(filter(None, (delta, ends and f"[{ends}]", MARKS.get(comparison.verdict))))


def figure(value: float, decimals: int) -> str:
    """Return a value with `decimals` digits after the point; from 1,000 on with none."""
    return f"{value:.{decimals}f}" if abs(value) < 1000 else f"{value:,.0f}"


def _title(table: Table) -> str:
    source = table.source
    if source is None:
        return table.title
    return f"{table.title} ({source.paper}{source.version}, table {source.table})"


def _legend(filled: Filled) -> list[str]:
    """Return explanations of the signs that occur."""
    table, cells = filled.table, [cell for line in filled.cells for cell in line]
    seen = [
        verdict
        for verdict in SIGNS
        if any(cell.verdict is verdict and cell.paper is not None for cell in cells)
    ]
    legend = []
    if any(cell.paper is not None for cell in cells):
        signs = [f"{SIGNS[verdict]} {verdict.value}" for verdict in seen]
        legend.append("; ".join(["ours (the paper's, ours less the paper's)", *signs]) + _tolerance(table))
    if any(cell.best for cell in cells):
        legend.append(
            "bold: better than every other one measured in its section,"
            " by the 95 % interval of the paired difference"
        )
    return legend + [
        f"{MARKS[outcome]} {meaning}"
        for outcome, meaning in MEANINGS.items()
        if any(cell.comparison is not None and cell.comparison.verdict is outcome for cell in cells)
    ]


def _tolerance(table: Table) -> str:
    return f"; tolerance {100 * table.tolerance:g} % where nothing else is said" if table.tolerance else ""
