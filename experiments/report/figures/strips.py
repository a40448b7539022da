"""A line for each run: values with intervals around a neutral value, or bars, and their numbers at the right.

The first `MOST` runs that are shown are drawn, in the order of the report.
"""

from functools import lru_cache
from typing import Any

import altair as alt

from experiments.report.figure import Figure, Rows, Spec
from experiments.report.figures import series as looks
from experiments.report.figures.series import Series

MOST = 60
STEP = 22
"""Pixels from line to line."""
NUMBERS, NARROW = 150, 330
"""Pixels of the numbers at the right, and of a figure too narrow for them."""
ROOM = f"width > {NARROW} ? width - {NUMBERS} : width"
CONTAINER = "containerSize()[0]"
NAMES = f"isFinite({CONTAINER}) ? max(120, 0.38 * {CONTAINER}) : 1000"
"""Widest name in pixels: a share of the page, and any in a file."""


def intervals(
    key: str,
    title: str,
    axis: str,
    rows: Rows,
    series: Series,
    *,
    neutral: float,
    log: bool = False,
    number: str = "+.4f",
    note: str = "",
) -> Figure | None:
    """Return values with intervals; None where there are no rows.

    Args:
        rows: with `value`, `low` and `high` (None for no interval), `decided` where the interval excludes
            `neutral`, and `label`, the numbers in words.
        neutral: value that stands for no difference.
        number: format of numbers at the pointer.
    """
    if not rows:
        return None
    spec = _intervals(series.among(rows), title, axis, neutral, log, number)
    return Figure(key, title, spec, rows, looks.counted(len(rows), MOST, note))


@lru_cache(maxsize=200)
def _intervals(series: Series, title: str, axis: str, neutral: float, log: bool, number: str) -> Spec:
    x = alt.X("value:Q", title=axis, scale=_scale(log), axis=_ticks())
    runs = alt.Chart().encode(x=x, y=_names())
    look = {"color": series.color(), "opacity": looks.faded()}
    whole = runs.transform_filter("isValid(datum.low)").encode(
        x=alt.X("low:Q", title=axis, scale=_scale(log), axis=_ticks()), x2="high:Q"
    )
    tip = [
        alt.Tooltip("name:N", title="run"),
        alt.Tooltip("value:Q", title=axis, format=number),
        alt.Tooltip("low:Q", title="from", format=number),
        alt.Tooltip("high:Q", title="to", format=number),
        alt.Tooltip("run:N", title="id"),
    ]
    without = alt.when("isValid(datum.low)").then(alt.value([1, 0])).otherwise(alt.value([2, 2]))
    marked = runs.encode(**look, shape=series.shape(), tooltip=tip)
    full, hollow = looks.marks(marked, 90, "!datum.decided")
    layers = (
        _neutral(neutral, axis, log),
        _with_legends(whole.mark_rule(clip=True, strokeWidth=2).encode(**look), "x"),
        full,
        hollow.encode(strokeDash=without),
        _numbers(),
        looks.ring(runs, size=260),
    )
    return _spec(layers, title, axis)


def bars(
    key: str, title: str, axis: str, rows: Rows, series: Series, *, parts: tuple[str, str], note: str = ""
) -> Figure | None:
    """Return bars of two parts, the first one pale; None where there are no rows.

    Args:
        rows: with a field for each part, and `label`, the numbers in words.
    """
    if not rows:
        return None
    spec = _bars(series.among(rows), title, axis, parts)
    return Figure(key, title, spec, rows, looks.counted(len(rows), MOST, note))


@lru_cache(maxsize=200)
def _bars(series: Series, title: str, axis: str, parts: tuple[str, str]) -> Spec:
    first, second = parts
    x = alt.X(f"{first}:Q", title=axis, scale=alt.Scale(zero=True, rangeMax=alt.ExprRef(ROOM)), axis=_ticks())
    runs = alt.Chart().transform_calculate(total=f"datum.{first} + datum.{second}").encode(x=x, y=_names())
    color, tip = series.color(), [alt.Tooltip("name:N", title="run")]
    tip += [alt.Tooltip(f"{part}:Q", title=f"{part}, {axis}", format=",.3~r") for part in parts]
    tip += [alt.Tooltip("run:N", title="id")]
    bar = runs.mark_bar(height=13).encode(color=color, tooltip=tip)
    layers = (
        bar.encode(x2=alt.datum(0), opacity=looks.faded(0.45)),
        _with_legends(bar.encode(x2="total:Q", opacity=looks.faded())),
        _numbers(),
        runs.transform_filter(looks.PICKED).mark_bar(style="picked", height=13).encode(
            x=alt.X("total:Q", title=axis), x2=alt.datum(0)
        ),
    )  # fmt: skip
    return _spec(layers, title, axis)


def _neutral(value: float, axis: str, log: bool) -> alt.Chart:
    x = alt.XDatum(value, type="quantitative", title=axis, scale=_scale(log))
    return (
        alt.Chart().transform_filter("datum.position === 1").mark_rule(style="level", clip=True).encode(x=x)
    )


def _scale(log: bool) -> alt.Scale:
    room = alt.ExprRef(ROOM)
    if log:
        return alt.Scale(type="log", nice=False, padding=14, rangeMax=room)
    return alt.Scale(zero=False, nice=False, padding=14, rangeMax=room)


def _ticks() -> alt.Axis:
    return alt.Axis(tickCount=alt.ExprRef("ceil(width / 110)"))


def _names() -> alt.Y:
    axis = alt.Axis(title=None, labelLimit=alt.ExprRef(NAMES), ticks=False, domain=False, grid=False)
    return alt.Y("name:N", sort=None, axis=axis)


def _numbers() -> alt.Chart:
    """Return the numbers in words, where there is room for them."""
    return (
        alt.Chart()
        .mark_text(style="beside", align="right", clip=True)
        .encode(
            x=alt.value("width"), y=_names(), text="label:N",
            opacity=alt.value(alt.ExprRef(f"width > {NARROW} ? 1 : 0")),
        )
    )  # fmt: skip


def _with_legends(marks: alt.Chart, *zoom: Any) -> alt.Chart:
    parameters = [looks.SHOWN_METHODS, looks.SHOWN_GROUPS, *([looks.zoomed(*zoom)] if zoom else [])]
    return marks.properties(name="marks").add_params(*parameters)


def _spec(layers: tuple[alt.Chart, ...], title: str, axis: str) -> Spec:
    chart = looks.layered(*layers)
    chart.transform = looks.first(MOST)
    words = f"{title}: {axis}, a line for each run."
    return looks.spec_of(chart, words, width="container", height=alt.Step(STEP))
