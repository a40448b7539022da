"""Heat maps of several runs below each other, on one scale: a row for each run, taken apart when it is drawn.

A run's row has its values as a list of lists, `values[kind][block]`. The specification keeps the first `MOST`
runs that are shown before it takes lists apart: so thousands of runs stay small. Each map has a line for its
name and one for each kind; a line's number gives the kind its label.
"""

import json
from collections.abc import Sequence

import altair as alt

from experiments.report.figure import Figure, Rows
from experiments.report.figures import series as looks

MOST = 12
STEP = 15
"""Pixels from line to line."""
Cells = Sequence[Sequence[float | None]]


def heat_maps(
    key: str,
    title: str,
    kinds: Sequence[str],
    blocks: Sequence[str],
    rows: Rows,
    *,
    value: str,
    across: str,
    log: bool = False,
    note: str = "",
) -> Figure | None:
    """Return the maps of runs; None where there are no rows.

    Args:
        kinds, blocks: names of the lines and of the columns of a map.
        rows: with `values`, a list for each kind of a value for each block; None is no cell.
        value: title of the values.
        across: words for the columns.
    """
    if not rows:
        return None
    labels = alt.Axis(
        labelExpr=f"{_list(['', *kinds])}[datum.value % {len(kinds) + 1}]", title=None, ticks=False,
        domain=False, labelLimit=150, labelOverlap=False, labelPadding=6,
    )  # fmt: skip
    line = alt.Y("line:O", axis=labels, scale=alt.Scale(padding=0))
    names = alt.Axis(title=across, labelAngle=0, labelOverlap=True, ticks=False)
    column = alt.X("column:O", sort=None, axis=names, scale=alt.Scale(domain=list(blocks), padding=0))
    tip = [
        alt.Tooltip("name:N", title="run"),
        alt.Tooltip("kind:N", title="part"),
        alt.Tooltip("column:N", title=across),
        alt.Tooltip("cell:Q", title=value, format=",.4~r"),
        alt.Tooltip("run:N", title="id"),
    ]
    cells = (
        _cells(kinds, blocks)
        .mark_rect(aria=False)
        .encode(x=column, y=line, color=_color(value, log), tooltip=tip)
    )
    layers = (cells.properties(name="cells"), *_titles(line, len(kinds)))
    chart = looks.layered(*layers)
    chart.transform = looks.first(MOST)
    words = f"{title}, a map for each run: {value}."
    spec = looks.spec_of(chart, words, width="container", height=alt.Step(STEP))
    return Figure(key, title, spec, rows, looks.counted(len(rows), MOST, note))


def _list(words: Sequence[str]) -> str:
    return json.dumps(list(words), ensure_ascii=False)


def _color(value: str, log: bool) -> alt.Color:
    scale = alt.Scale(type="log", range="heatmap", nice=False) if log else alt.Scale(
        range="heatmap", zero=False, nice=False
    )  # fmt: skip
    length = alt.ExprRef("min(300, width)")
    legend = alt.Legend(title=value, orient="top", gradientLength=length, titleLimit=600, format=",.3~r")
    return alt.Color("cell:Q", scale=scale, legend=legend)


def _cells(kinds: Sequence[str], blocks: Sequence[str]) -> alt.Chart:
    """Return a chart of all cells: `line`, `kind`, `column` and `cell`."""
    return (
        alt.Chart()
        .transform_calculate(kinds=_list(kinds), lines=f"sequence({len(kinds)})")
        .transform_flatten(["values", "kinds", "lines"], as_=["values", "kind", "lines"])
        .transform_calculate(
            blocks=_list(blocks), line=f"(datum.position - 1) * {len(kinds) + 1} + 1 + datum.lines"
        )
        .transform_flatten(["values", "blocks"], as_=["cell", "column"])
        .transform_filter("isValid(datum.cell)")
    )


def _titles(line: alt.Y, kinds: int) -> tuple[alt.Chart, alt.Chart]:
    """Return the names above the maps, and the mark beside that of the picked run."""
    named = alt.Chart().transform_calculate(line=f"(datum.position - 1) * {kinds + 1}").encode(y=line)
    names = named.mark_text(style="beside", align="left", baseline="middle", dx=1).encode(
        x=alt.value(0), text="name:N"
    )
    picked = named.transform_filter(looks.PICKED).mark_rule(style="picked").encode(
        x=alt.value(0), x2=alt.value("width")
    )  # fmt: skip
    return names, picked
