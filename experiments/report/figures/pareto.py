"""Quality over size, a line per method and options, and the Pareto front: runs that none beats on both."""

from typing import Any

import altair as alt

from experiments.report.comparable import Entry, Group
from experiments.report.figure import Figure, Rows, Spec
from experiments.report.figures import levels
from experiments.report.figures import series as looks
from experiments.report.figures.quality import PERPLEXITY, SIZES, Quality, Size, divergence, finite, is_floor
from experiments.report.figures.series import Series

CEILING = 30
"""Multiple of the lowest value at which the axis ends.

Higher perplexities only say that the model is destroyed, and would flatten all others.
"""
MOST_LABELS = 60
"""Runs up to which each mark has its bits in it."""


def figures(group: Group, series: Series) -> list[Figure]:
    """Return a figure for each quality and size that some compressed run has."""
    return [
        figure
        for quality in (PERPLEXITY, divergence(group))
        for size in SIZES
        if (figure := _figure(group, series, quality, size))
    ]


def _figure(group: Group, series: Series, quality: Quality, size: Size) -> Figure | None:
    compressed = [entry for entry in group.entries if not entry.is_dense]
    points = [row for entry in compressed if (row := _point(entry, group, series, quality, size))]
    if not points:
        return None
    references = [row for entry in group.entries if (row := levels.row(entry, finite(entry, quality.path)))]
    runs = {row["run"] for row in points} | {row["of"] for row in references}
    missing = [entry.name for entry in compressed if entry.row["run_id"] not in runs]
    rows = (*points, *references)
    spec = _spec(series, rows, quality, size)
    return Figure(f"{quality.key}_{size.key}", quality.title, spec, rows, _note(points, quality, missing))


def _point(entry: Entry, group: Group, series: Series, quality: Quality, size: Size) -> dict[str, Any] | None:
    """Return the row of a run; None where it lacks a number, or is a level."""
    x, y = finite(entry, size.path), finite(entry, quality.path)
    if x is None or y is None or y <= 0 or is_floor(entry):
        return None
    low, high = quality.interval(entry, group) or (None, None)
    return {**looks.facts(entry, series), "x": x * size.factor, "y": y, "low": low, "high": high}


def _note(points: list[dict[str, Any]], quality: Quality, missing: list[str]) -> str:
    lowest = min(row["y"] for row in points)
    beyond = sum(row["y"] > CEILING * lowest for row in points)
    notes = ["In the marks: bits. Pale band: the Pareto front, runs that no other beats on both axes."]
    notes += [f"Whiskers: {quality.meaning}."] if any(row["low"] is not None for row in points) else []
    notes += [f"On the upper edge, with an arrow: above {CEILING} times the lowest."] if beyond else []
    notes += [f"Not drawn: {', '.join(missing)} (not measured or not finite)."] if missing else []
    return " ".join(notes)


def _spec(series: Series, rows: Rows, quality: Quality, size: Size) -> Spec:
    across = alt.Axis(tickCount=alt.ExprRef("ceil(width / 90)"))
    x = alt.X("x:Q", title=size.axis, scale=alt.Scale(zero=False, nice=False, padding=18), axis=across)

    def up(field: str) -> alt.Y:
        scale = alt.Scale(type="log", nice=False, padding=22)
        return alt.Y(f"{field}:Q", title=quality.axis, scale=scale)

    runs = alt.Chart().transform_filter(looks.IS_RUN).encode(x=x, y=up("shown"))
    look = {"color": series.color(rows), "opacity": looks.faded()}
    marks = runs.mark_point(filled=True, size=230, clip=True).encode(
        **look, **series.mark(rows), tooltip=_tip(quality, size)
    )
    layers = (
        _front(runs),
        *levels.layers(up("level")),
        runs.mark_line(clip=True, strokeWidth=1.4).encode(**look, detail="family:N"),
        _whiskers(runs.encode(y=up("low"), **look)),
        marks.properties(name="marks").add_params(
            looks.SHOWN_METHODS, looks.SHOWN_GROUPS, looks.zoomed("x", "y")
        ),
        *_labels(runs),
        _arrows(runs),
        looks.ring(runs),
    )
    words = f"{quality.title}: {quality.axis} over {size.axis}, one mark for each run."
    return looks.spec_of(_clamped(looks.layered(*layers)), words, width="container", height=340)


def _tip(quality: Quality, size: Size) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("name:N", title="run"),
        alt.Tooltip("y:Q", title=quality.axis, format=quality.format),
        alt.Tooltip("low:Q", title="95 % from", format=quality.format),
        alt.Tooltip("high:Q", title="to", format=quality.format),
        alt.Tooltip("x:Q", title=size.axis, format=",.4~g"),
        alt.Tooltip("run:N", title="id"),
    ]


def _clamped(chart: alt.LayerChart) -> alt.LayerChart:
    """Return the chart with `shown`, the height of a run on an axis that ends at `CEILING` × the lowest."""
    return chart.transform_joinaggregate(lowest="min(y)").transform_calculate(
        shown=f"isValid(datum.y) ? min(datum.y, {CEILING} * datum.lowest) : null",
        beyond=f"isValid(datum.y) && datum.y > {CEILING} * datum.lowest",
    )


def _front(runs: alt.Chart) -> alt.Chart:
    """Return the runs below every smaller run: below the running minimum from left to right.

    Vega ignores the sign of a frame's end, so the minimum of the runs before is read from the one before.
    """
    order: list[alt.SortField | dict[str, str]] = [alt.SortField("x"), alt.SortField("y")]
    return (
        runs.transform_window(best="min(y)", frame=[None, 0], sort=order, ignorePeers=True)
        .transform_window(before="lag(best)", sort=order)
        .transform_filter("!isValid(datum.before) || datum.y < datum.before")
        .mark_line(style="front", clip=True, interpolate="step-after")
    )


def _whiskers(runs: alt.Chart) -> alt.Chart:
    return (
        runs.transform_filter("isValid(datum.low) && !datum.beyond")
        .transform_calculate(top=f"min(datum.high, {CEILING} * datum.lowest)")
        .mark_rule(clip=True, strokeWidth=2)
        .encode(y2="top:Q")
    )


def _labels(runs: alt.Chart) -> tuple[alt.Chart, ...]:
    """Return the bits in the marks, in full ones in the colour of the page."""
    few = (
        runs.transform_joinaggregate(count="count()")
        .transform_filter(f"datum.count <= {MOST_LABELS}")
        .encode(text="bits:N", opacity=looks.faded())
    )
    return tuple(
        few.transform_filter(f"{'!' * (style == 'inside')}datum.hollow").mark_text(style=style, clip=True)
        for style in ("inside", "inside_hollow")
    )


def _arrows(runs: alt.Chart) -> alt.Chart:
    return (
        runs.transform_filter("datum.beyond")
        .transform_calculate(words="'↑ ' + format(datum.y, ',.4~g')")
        .mark_text(style="beside", align="left", dx=10, clip=True)
        .encode(text="words:N")
    )
