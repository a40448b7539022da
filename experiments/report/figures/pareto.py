"""Quality over size or speed, and the Pareto front: runs that no other beats on both axes.

Runs that differ in bits alone are joined by a line.
"""

from functools import lru_cache
from typing import Any

import altair as alt

from experiments.report.comparable import Entry, Group
from experiments.report.figure import Figure, Spec
from experiments.report.figures import levels
from experiments.report.figures import series as looks
from experiments.report.figures.quality import COSTS, PERPLEXITY, Cost, Quality, divergence, finite, is_floor
from experiments.report.figures.series import Series

CEILING = 30
"""Multiple of the lowest value at which the axis ends.

Higher perplexities only say that the model is destroyed, and would flatten all others.
"""
MOST_LABELS = 60
"""Runs up to which each mark has its bits in it."""
NUMBER = ",.4~r"


def figures(group: Group, series: Series) -> list[Figure]:
    """Return a figure for each quality and cost that some compressed run has."""
    return [
        figure
        for quality in (PERPLEXITY, divergence(group))
        for cost in COSTS
        if (figure := _figure(group, series, quality, cost))
    ]


def _figure(group: Group, series: Series, quality: Quality, cost: Cost) -> Figure | None:
    compressed = [entry for entry in group.entries if not entry.is_dense and not is_floor(entry)]
    found = {entry.row["run_id"]: _point(entry, group, quality, cost) for entry in compressed}
    points = [looks.facts(each, series) | row for each in compressed if (row := found[each.row["run_id"]])]
    if not points:
        return None
    references = [row for entry in group.entries if (row := levels.row(entry, finite(entry, quality.path)))]
    missing = [entry.name for entry in compressed if found[entry.row["run_id"]] is None]
    rows = (*points, *references)
    title = f"{quality.title} over {cost.title}"
    spec = _spec(series.among(rows), quality, cost, title)
    return Figure(f"{quality.key}_{cost.key}", title, spec, rows, _note(points, quality, missing))


def _point(entry: Entry, group: Group, quality: Quality, cost: Cost) -> dict[str, Any] | None:
    """Return the numbers of a run; None where one is missing."""
    x, y = cost.of(entry), finite(entry, quality.path)
    if x is None or y is None or y <= 0:
        return None
    low, high = quality.interval(entry, group) or (None, None)
    left, right = cost.interval(entry) or (None, None)
    return {"x": x, "y": y, "low": low, "high": high, "left": left, "right": right}


def _note(points: list[dict[str, Any]], quality: Quality, missing: list[str]) -> str:
    ceiling = CEILING * min(row["y"] for row in points)
    notes = ["In the marks: bits. Pale band: the Pareto front, runs that no other beats on both axes."]
    if any(row["low"] is not None for row in points):
        notes += [f"Upright whiskers: {quality.meaning}."]
    if any(row["left"] is not None for row in points):
        notes += ["Level whiskers: slowest and fastest round."]
    if any(row["y"] > ceiling for row in points):
        notes += [f"On the upper edge, with an arrow: above {CEILING} times the lowest."]
    if missing:
        notes += [f"Not drawn: {', '.join(missing)} (not measured or not finite)."]
    return " ".join(notes)


@lru_cache(maxsize=200)
def _spec(series: Series, quality: Quality, cost: Cost, title: str) -> Spec:
    def across(field: str) -> alt.X:
        how: dict[str, Any] = {"type": "log"} if cost.is_speed else {"zero": False}
        ticks = alt.Axis(tickCount=alt.ExprRef("ceil(width / 90)"))
        scale = alt.Scale(nice=False, padding=18, **how)
        return alt.X(f"{field}:Q", title=cost.axis, scale=scale, axis=ticks)

    def up(field: str) -> alt.Y:
        scale = alt.Scale(type="log", nice=False, padding=22)
        return alt.Y(f"{field}:Q", title=quality.axis, scale=scale, axis=alt.Axis(tickCount=7))

    runs = alt.Chart().transform_filter(looks.IS_RUN).encode(x=across("x"), y=up("shown"))
    look = {"color": series.color(hollow=True), "opacity": looks.faded()}
    lines = runs.mark_line(clip=True, strokeWidth=1.4).encode(**look, detail="family:N")
    marked = runs.encode(**look, shape=series.shape(), tooltip=_tip(quality, cost))
    layers = (
        _front(runs, cost.is_speed),
        *levels.layers(up("level")),
        lines.properties(name="lines").add_params(
            looks.SHOWN_METHODS, looks.SHOWN_GROUPS, looks.zoomed("x", "y")
        ),
        _upright(runs.encode(y=up("low"), **look)),
        _level(runs.encode(x=across("left"), **look)),
        *looks.marks(marked, 230),
        *looks.labels(_few(runs)),
        _arrows(runs),
        looks.ring(runs),
    )
    words = f"{title}: {quality.axis} over {cost.axis}, one mark for each run."
    return looks.spec_of(_clamped(looks.layered(*layers)), words, width="container", height=340)


def _tip(quality: Quality, cost: Cost) -> list[alt.Tooltip]:
    along = [("y:Q", quality.axis), ("low:Q", "95 % from"), ("high:Q", "to")]
    across = [("x:Q", cost.axis)] + [("left:Q", "slowest"), ("right:Q", "fastest")] * cost.is_speed
    return [
        alt.Tooltip("name:N", title="run"),
        *(alt.Tooltip(field, title=title, format=quality.format) for field, title in along),
        *(alt.Tooltip(field, title=title, format=NUMBER) for field, title in across),
        alt.Tooltip("run:N", title="id"),
    ]


def _clamped(chart: alt.LayerChart) -> alt.LayerChart:
    """Return the chart with `shown`, the height of a run on an axis that ends at `CEILING` × the lowest."""
    return chart.transform_joinaggregate(lowest="min(y)").transform_calculate(
        shown=f"isValid(datum.y) ? min(datum.y, {CEILING} * datum.lowest) : null",
        beyond=f"isValid(datum.y) && datum.y > {CEILING} * datum.lowest",
    )


def _front(runs: alt.Chart, from_right: bool) -> alt.Chart:
    """Return the runs below every cheaper run: below the running minimum, the cheapest run first.

    Vega ignores the sign of a frame's end, so the minimum of the runs before is read from the one before.
    """
    order: list[alt.SortField | dict[str, str]] = [
        alt.SortField("x", order="descending" if from_right else "ascending"),
        alt.SortField("y"),
    ]
    return (
        runs.transform_window(best="min(y)", frame=[None, 0], sort=order, ignorePeers=True)
        .transform_window(before="lag(best)", sort=order)
        .transform_filter("!isValid(datum.before) || datum.y < datum.before")
        .mark_line(style="front", clip=True, interpolate="step-before" if from_right else "step-after")
    )


def _upright(runs: alt.Chart) -> alt.Chart:
    return (
        runs.transform_filter("isValid(datum.low) && !datum.beyond")
        .transform_calculate(top=f"min(datum.high, {CEILING} * datum.lowest)")
        .mark_rule(clip=True, strokeWidth=2)
        .encode(y2="top:Q")
    )


def _level(runs: alt.Chart) -> alt.Chart:
    return (
        runs.transform_filter("isValid(datum.left)").mark_rule(clip=True, strokeWidth=2).encode(x2="right:Q")
    )


def _few(runs: alt.Chart) -> alt.Chart:
    """Return runs where there are few enough to read what is in their marks."""
    return runs.transform_joinaggregate(count="count()").transform_filter(f"datum.count <= {MOST_LABELS}")


def _arrows(runs: alt.Chart) -> alt.Chart:
    return (
        runs.transform_filter("datum.beyond")
        .transform_calculate(words=f"'↑ ' + format(datum.y, '{NUMBER}')")
        .mark_text(style="beside", align="left", dx=10, clip=True)
        .encode(text="words:N")
    )
