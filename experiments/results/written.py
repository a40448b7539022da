"""Columns of a table as Markdown, LaTeX or CSV text, in full width."""

import csv
import io
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from experiments.common.fitted import Column

FORMATS = ("terminal", "markdown", "latex", "csv")
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "✓": r"$\surd$", "✗": r"$\times$", "≠": r"$\neq$", "–": "--", "−": "$-$",
    "≈": r"$\approx$", "Δ": r"$\Delta$", "×": r"$\times$", "…": r"\ldots{}",
})  # fmt: skip
MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|*_<>`[]"})


def markdown(columns: Sequence[Column]) -> str:
    """Return a table in GitHub's Markdown."""
    headings, body = _translated(columns, MARKDOWN)
    alignment = ["right" if column.right else "left" for column in columns]
    return tabulate(body, headings, "pipe", colalign=alignment, disable_numparse=True) + "\n"


def latex(columns: Sequence[Column]) -> str:
    """Return a LaTeX `tabular` with booktabs rules; needs `\\usepackage{booktabs}`."""
    headings, body = _translated(columns, LATEX)
    alignment = "".join("r" if column.right else "l" for column in columns)
    head, *lines = [" & ".join(line) + r" \\" for line in (headings, *body)]
    inside = [r"\toprule", head, r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{alignment}}}", *inside, r"\end{tabular}"]) + "\n"


def _translated(columns: Sequence[Column], escapes: Mapping[int, str]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the lines, with the characters that a format would read escaped."""
    headings = [" ".join(column.heading.split()).translate(escapes) for column in columns]
    cells = [[" ".join(cell.split()).translate(escapes) for cell in column.cells] for column in columns]
    return headings, [list(line) for line in zip(*cells, strict=True)]


def as_csv(columns: Mapping[str, Sequence[object]]) -> str:
    """Return CSV text of named columns, values in full; empty cells for None."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()
