"""Formats of a layout: pandas' Styler writes HTML and LaTeX (booktabs), tabulate Markdown, rich the terminal.

CSV is for programs: one line per cell, values in full, with the run's id.
"""

import enum
import html
import io
from collections.abc import Callable

import pandas as pd
from pandas.io.formats.style import Styler
from rich.console import Console
from tabulate import tabulate

from experiments.common import fitted
from experiments.results.written import LATEX, MARKDOWN
from experiments.tables.cell import Filled
from experiments.tables.layout import Layout, lay_out


class Format(enum.Enum):
    """Formats of a table."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    html = "html"
    csv = "csv"


def render(filled: Filled, format: Format, width: int = 200) -> str:
    """Return the table as text in a format. Only the terminal's has a width, in characters."""
    if format is Format.csv:
        return csv(filled)
    if format is Format.terminal:
        console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
        terminal(lay_out(filled), console)
        return console.file.getvalue()  # type: ignore[attr-defined]
    return {Format.markdown: markdown, Format.latex: latex, Format.html: as_html}[format](lay_out(filled))


def terminal(layout: Layout, console: Console) -> None:
    """Print a table, without its last columns where it is narrow; a cell with parentheses has two lines."""
    for warning in layout.warnings:
        console.print(f"warning: {warning}", style="bold red", soft_wrap=True)
    columns = [_column(layout, k) for k in range(len(layout.headings))]
    fitted.show(console, columns, layout.title, "all columns: --format markdown")
    for note in layout.notes:
        console.print(note, style="dim", soft_wrap=True)


def _column(layout: Layout, k: int) -> fitted.Column:
    cells, is_label = [line[k] for line in layout.lines], k < layout.labels
    return fitted.Column(
        "\n".join(filter(None, layout.headings[k])),
        tuple(cell.text.replace(" (", "\n(") for cell in cells),
        fitted.ESSENTIAL if is_label else fitted.ESSENTIAL - 1 - k,
        right=not is_label,
        wraps=is_label,
        bold=tuple(cell.bold for cell in cells),
    )


def markdown(layout: Layout) -> str:
    """Return Markdown for GitHub: the heading of a column group is repeated in each column."""
    headings = [_markdown(" ".join(filter(None, heading))) for heading in layout.headings]
    body = [
        [f"**{_markdown(cell.text)}**" if cell.bold else _markdown(cell.text) for cell in line]
        for line in layout.lines
    ]
    alignment = ["left"] * layout.labels + ["right"] * (len(headings) - layout.labels)
    table = tabulate(body, headings, "pipe", colalign=alignment, disable_numparse=True)
    parts = [
        f"**{_markdown(layout.title)}**",
        *(f"**Warning: {_markdown(warning)}**" for warning in layout.warnings),
        table,
        *map(_markdown, layout.notes),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return text.translate(MARKDOWN)


def latex(layout: Layout) -> str:
    """Return a LaTeX `table` with booktabs rules and multicolumn headings; needs `\\usepackage{booktabs}`."""
    styler = _styler(layout, _latex)
    columns = "l" * layout.labels + "r" * (len(layout.headings) - layout.labels)
    caption = " ".join([layout.title, *(f"Warning: {warning}." for warning in layout.warnings)])
    body = styler.to_latex(
        hrules=True,
        column_format=columns,
        multicol_align="c",
        caption=_latex(caption),
        position="t",
        position_float="centering",
        convert_css=True,
    )
    notes = "".join(rf"\par\footnotesize {_latex(note)}" + "\n" for note in layout.notes)
    return body.replace(r"\end{table}", notes + r"\end{table}")


def _latex(text: str) -> str:
    return text.translate(LATEX)


STYLE = """<style>
.paper { font: 15px/1.4 system-ui, sans-serif; overflow-x: auto; color-scheme: light dark }
.paper table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.paper caption { text-align: left; font-weight: 600; padding: .4em 0 }
.paper th, .paper td { padding: .2em .7em; text-align: right; white-space: nowrap }
.paper thead tr:last-child th { border-bottom: 1px solid }
.paper .warning { color: #c0392b; font-weight: 600 }
.paper .note { font-size: 85%; opacity: .8; margin: .2em 0 }
</style>"""


def as_html(layout: Layout) -> str:
    """Return an HTML fragment: style, then warnings, a `table` and notes in a `div`."""
    styler = _styler(layout, html.escape).set_caption(html.escape(layout.title))
    styler.set_properties(subset=styler.columns[: layout.labels], **{"text-align": "left"})
    warnings = "".join(f'<p class="warning">{html.escape(warning)}</p>\n' for warning in layout.warnings)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in layout.notes)
    return f'{STYLE}\n<div class="paper">\n{warnings}{styler.to_html()}{notes}</div>\n'


def _styler(layout: Layout, escaped: Callable[[str], str]) -> Styler:
    """Return the styled frame of a layout, with bold cells."""
    headings = [(escaped(group), escaped(label)) for group, label in layout.headings]
    flat = pd.Index([label for _, label in headings])
    columns = pd.MultiIndex.from_tuples(headings) if layout.grouped else flat
    frame = pd.DataFrame([[escaped(cell.text) for cell in line] for line in layout.lines], columns=columns)
    styles = [["font-weight: bold;" * cell.bold for cell in line] for line in layout.lines]
    bold = pd.DataFrame(styles, columns=columns)
    return frame.style.hide(axis="index").apply(lambda _: bold, axis=None)


def csv(filled: Filled) -> str:
    """Return every cell as a line of CSV."""
    table = filled.table
    records = [
        {
            "section": line.section, "row": line.label, "group": column.group, "column": column.label,
            "metric": column.metric or table.metric,
            "ours": cell.ours, "paper": cell.paper, "difference": cell.difference,
            "tolerance": table.tolerance_of(line, column),
            "low": cell.comparison.interval[0] if cell.comparison and cell.comparison.interval else None,
            "high": cell.comparison.interval[1] if cell.comparison and cell.comparison.interval else None,
            "paired": cell.comparison.verdict.value if cell.comparison else None,
            "verdict": cell.verdict.value, "best": cell.best,
            "run_id": cell.row["run_id"] if cell.row else None, "note": cell.note,
        }
        for line, cells in zip(table.rows, filled.cells, strict=True)
        for column, cell in zip(table.columns, cells, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(records).to_csv(index=False)
