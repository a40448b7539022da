"""Curves, a line each, over an axis of numbers or of named steps, with the bits of runs in the marks.

A row has the whole curve of a run as lists, `x` and `y`, or a point of a curve of several runs. The
specification takes lists apart after it has chosen the first `MOST` curves of the runs that are shown: so
thousands stay small.
"""

from functools import lru_cache
from typing import Any

import altair as alt

from experiments.report.figure import Figure, Rows, Spec
from experiments.report.figures import series as looks
from experiments.report.figures.series import Series

MOST = 16
MOST_MARKS = 16
"""Marks of a curve; longer ones are lines alone."""


def curves(
    key: str,
    title: str,
    across: str,
    up: str,
    rows: Rows,
    series: Series,
    *,
    named: bool = False,
    log: bool = False,
    points: bool = False,
    note: str = "",
) -> Figure | None:
    """Return curves of runs; None where there are no rows.

    Args:
        across, up: titles of the axes.
        rows: with `curve`, the number of the curve, and with `x` and `y`, lists of one length; a `y` of None
            is a gap.
        named: `x` are names, in order.
        points: a row is a point of a curve.
    """
    if not rows:
        return None
    words = f"{title}: {up} over {across}."
    spec = _spec(series.among(rows), across, up, words, named, log, points)
    count = len({row["curve"] for row in rows if "run" in row})
    return Figure(key, title, spec, rows, looks.counted(count, MOST, note))


@lru_cache(maxsize=200)
def _spec(series: Series, across: str, up: str, words: str, named: bool, log: bool, points: bool) -> Spec:
    x = _across(across, named)
    y_scale = alt.Scale(type="log", nice=False, padding=14) if log else alt.Scale(zero=False, padding=14)
    y = alt.Y("y:Q", title=up, scale=y_scale, axis=alt.Axis(tickCount=6))
    runs = alt.Chart().transform_filter(looks.IS_RUN).encode(x=x, y=y)
    coloured = runs.encode(color=series.color(hollow=True), opacity=looks.faded())
    tip = _tip(across, up, named)
    layers = (
        *_references(x, y),
        coloured.mark_line(clip=True, strokeWidth=1.6)
        .encode(detail="curve:N", strokeDash=series.dash(), tooltip=tip)
        .properties(name="lines")
        .add_params(looks.SHOWN_METHODS, looks.SHOWN_GROUPS, looks.zoomed(*"y" if named else "xy")),
        *looks.marks(_few(coloured).encode(shape=series.shape(), tooltip=tip), 190),
        *looks.labels(_few(runs)),
        runs.encode(detail="curve:N").transform_filter(looks.PICKED).mark_line(style="picked", clip=True),
        looks.ring(_few(runs), size=330),
    )
    chart = looks.layered(*layers)
    chart.transform = [*looks.first(MOST, "curve" if points else None), alt.FlattenTransform(["x", "y"])]
    return looks.spec_of(chart, words, width="container", height=340)


def _across(title: str, named: bool) -> alt.X:
    if named:
        scale, axis = alt.Scale(padding=0.3), alt.Axis(labelAngle=0, grid=False)
        return alt.X("x:O", title=title, sort=None, scale=scale, axis=axis)
    ticks = alt.Axis(tickCount=alt.ExprRef("ceil(width / 90)"))
    return alt.X("x:Q", title=title, scale=alt.Scale(nice=False, zero=False, padding=14), axis=ticks)


def _references(x: alt.X, y: alt.Y) -> tuple[alt.Chart, alt.Chart]:
    """Return the curves of references, each with its name at its end."""
    lines = alt.Chart().transform_filter(looks.IS_REFERENCE).encode(x=x, y=y, detail="curve:N")
    last = lines.transform_window(after="lead(x)", groupby=["curve"]).transform_filter(
        "!isValid(datum.after)"
    )
    words = last.mark_text(style="beside", align="right", dx=-10, dy=-6).encode(text="name:N")
    return lines.mark_line(style="level", clip=True), words


def _few(runs: alt.Chart) -> alt.Chart:
    """Return the runs whose curves are short enough for marks."""
    count = alt.JoinAggregateFieldDef(op="count", **{"as": "steps"})
    return runs.transform_joinaggregate(joinaggregate=[count], groupby=["curve"]).transform_filter(
        f"datum.steps <= {MOST_MARKS}"
    )


def _tip(across: str, up: str, named: bool) -> list[alt.Tooltip]:
    step: dict[str, Any] = {} if named else {"format": ",.5~r"}
    return [
        alt.Tooltip("name:N", title="run"),
        alt.Tooltip("x:N" if named else "x:Q", title=across, **step),
        alt.Tooltip("y:Q", title=up, format=",.4~r"),
        alt.Tooltip("run:N", title="id"),
    ]
