"""A table of a paper in a terminal that is too narrow for it: whole columns go, and are named."""

import io

import pytest
from rich.console import Console

from experiments.tables.formats import terminal
from experiments.tables.layout import Layout, Text


@pytest.mark.parametrize(("width", "count"), [(20, 0), (60, 3), (80, 4), (300, 9)])
def test_a_narrow_terminal_loses_columns_and_no_digits(width: int, count: int) -> None:
    values = [
        [(f"{10 * row + column + 0.25:.2f}", f"({row}.50, +0.01 ✓)") for column in range(9)]
        for row in range(3)
    ]
    headings = (("", "method"), *(("wikitext2", f"{column} bits") for column in range(9)))
    lines = tuple(
        (Text(f"method {row}"), *(Text(" ".join(cell), bold=row == 1) for cell in line))
        for row, line in enumerate(values)
    )
    layout = Layout("A [title]", headings, lines, 1, ("beware [x]",), ("[1] a note",))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, markup=False)
    terminal(layout, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    table, _, left_out = text.partition("too narrow for ")
    shown = [k for k in range(9) if f"wikitext2 {k} bits" not in left_out]
    assert shown == list(range(count))
    for line in values:
        for k, (ours, paper) in enumerate(line):
            assert (ours in table.split()) == (k in shown)
            assert paper in table or k not in shown
    assert all(words in text for words in ("A [title]", "warning: beware [x]", "[1] a note"))
