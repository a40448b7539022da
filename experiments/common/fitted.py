"""Tables for the console that are never cut: whole columns are left out, the least important first.

rich makes a table fit a narrow terminal by cutting its cells, numbers and run ids among them. Here a cell
that does not fit is never shortened. First, columns of words go on further lines. Then whole columns are
left out, and a line under the table names them. What cannot be left out is printed wider than the terminal,
which breaks the line itself. A pipe or a file has no width of its own; `console.py` says which it gets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

ESSENTIAL = 100
"""Importance of a column that is never left out."""
WIDER = "a wider terminal has them, or a larger COLUMNS in the environment"
GAP, EDGE = 2, 1
"""Blanks between two columns, and before the first."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    heading: str
    """Heading; a line break makes two lines."""
    cells: tuple[str, ...]
    importance: int = ESSENTIAL
    """Columns of the lowest importance are left out first."""
    right: bool = False
    """True for a column of numbers, which end below each other."""
    wraps: bool = False
    """True where a cell may go on another line between words."""
    bold: tuple[bool, ...] = ()
    """True for each cell in bold; empty where none is."""

    @cached_property
    def lines(self) -> list[list[str]]:
        """Lines of each cell."""
        return [cell.split("\n") for cell in self.cells]

    @cached_property
    def width(self) -> int:
        """Width of the longest line, in characters of the terminal."""
        every = [*self.heading.split("\n"), *(line for cell in self.lines for line in cell)]
        return max(map(cell_len, every))

    @cached_property
    def least_width(self) -> int:
        """Width below which a word, or the heading, would be cut."""
        words = [word for cell in self.cells for word in cell.split()] if self.wraps else []
        return max(map(cell_len, [*self.heading.split("\n"), *words])) if self.wraps else self.width

    def within(self, width: int) -> "Column":
        """Return the column with the lines of its cells broken at blanks to fit a width."""
        return replace(self, cells=tuple("\n".join(_broken(cell, width)) for cell in self.cells))


def clean(text: str) -> str:
    """Return text from a file as one line of printable characters."""
    return "".join(each if each.isprintable() else " " for each in text)


def table_width(columns: Sequence[Column]) -> int:
    """Return the width of a table of columns, its left edge included."""
    return EDGE + sum(column.width for column in columns) + GAP * (len(columns) - 1)


def fit(columns: Sequence[Column], width: int) -> tuple[list[Column], list[Column]]:
    """Return the columns that fit a width, words broken into lines, and the columns left out.

    Args:
        columns: all columns, in order.
        width: width of the terminal.
    """
    kept = list(columns)
    while table_width(narrowed := _narrowed(kept, width)) > width:
        droppable = [column for column in kept if column.importance < ESSENTIAL]
        if not droppable:
            return narrowed, [column for column in columns if column not in kept]
        least = min(column.importance for column in droppable)
        kept.remove(next(column for column in reversed(droppable) if column.importance == least))
    return _narrowed(kept, width), [column for column in columns if column not in kept]


def _narrowed(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns, those that wrap as narrow as the width asks for, the widest first."""
    widths = [column.width for column in columns]
    excess = table_width(columns) - width
    while excess > 0:
        room = [now - column.least_width for now, column in zip(widths, columns, strict=True)]
        widest = max(range(len(columns)), key=lambda k: (room[k] > 0, widths[k]))
        if room[widest] <= 0:
            break
        step = min(excess, room[widest])
        widths[widest] -= step
        excess -= step
    return [
        column.within(now) if now < column.width else column
        for now, column in zip(widths, columns, strict=True)
    ]


def _broken(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines if lines[0] or len(lines) == 1 else lines[1:]


def lines(columns: Sequence[Column]) -> list[Text]:
    """Return the lines of a table: headings, a rule, and the rows."""
    headings = [column.heading.split("\n") for column in columns]
    deepest = max(map(len, headings))
    above = [[""] * (deepest - len(heading)) + heading for heading in headings]
    all_bold = [True] * len(columns)
    head = [_line(columns, parts, all_bold) for parts in zip(*above, strict=True)]
    rule = Text(" " * EDGE + "─" * (table_width(columns) - EDGE))
    body = []
    for number, cells in enumerate(zip(*(column.lines for column in columns), strict=True)):
        height = max(map(len, cells))
        padded = [cell + [""] * (height - len(cell)) for cell in cells]
        bold = [bool(column.bold) and column.bold[number] for column in columns]
        body += [_line(columns, parts, bold) for parts in zip(*padded, strict=True)]
    return [*head, rule, *body]


def _line(columns: Sequence[Column], parts: Sequence[str], bold: Sequence[bool]) -> Text:
    line = Text(" " * EDGE)
    for column, text, is_bold in zip(columns, parts, bold, strict=True):
        blank = " " * (column.width - cell_len(text))
        line.append(blank + text if column.right else text + blank, "bold" if is_bold else "")
        line.append(" " * GAP)
    line.rstrip()
    return line


def show(console: Console, columns: Sequence[Column], title: str = "", way_out: str = WIDER) -> None:
    """Print a table that fits the console, and a line that names the columns left out.

    Args:
        console: the console, whose width the table fits.
        columns: the columns, in order.
        title: line above the table.
        way_out: how to see all columns.
    """
    kept, left_out = fit(columns, console.width)
    if title:
        console.print(Text(clean(title), style="italic"), soft_wrap=True)
    for line in lines(kept):
        console.print(line, soft_wrap=True)
    if left_out:
        names = ", ".join(" ".join(column.heading.split()) for column in left_out)
        console.print(Text(f"too narrow for {names}; {way_out}", style="dim"), soft_wrap=True)
