"""Figures as SVG markup for the page. The template (`assets/page.html`) adds their titles and notes."""

from functools import singledispatch
from itertools import pairwise

from markupsafe import Markup

from experiments.report import svg
from experiments.report.colours import LEVELS
from experiments.report.drawn import Bars, Chart, HeatMaps, Intervals, Item, Line, Point
from experiments.report.packed_maps import packed
from experiments.report.scale import Scale, around, number
from experiments.report.svg import tag

HEIGHT, STRIP, BAR, CELL = 320, 24, 14, 16
"""Heights in pixels: a chart, a strip of an interval or a bar, a bar in a strip, a row of a heat map."""
MOST_STRIPS = 500
"""Strips in a figure, at most: so many are half a megabyte, and more are read by nobody."""


@singledispatch
def draw(figure: object) -> Markup:
    """Return a figure as markup."""
    raise TypeError(f"{type(figure).__name__} is no figure that the page can draw")


@draw.register
def _chart(figure: Chart) -> Markup:
    every = [point for each in figure.lines for point in each.points]
    heights = [figure.drawn(point) for point in every] + ([figure.level[1]] if figure.level else [])
    across, up = around([point.x for point in every]), around(heights, figure.log)
    parts = [*_grid(across, up), *_level(figure.level, up)]
    positions = {point: (across.percent(point.x), _down(up, figure.drawn(point))) for point in every}
    parts += [piece for each in figure.lines for piece in _joined(each, positions)]
    parts += [_ring(*positions[point]) for point in figure.front]
    parts += [
        svg.mark(*positions[point], each.style, point.hint) for each in figure.lines for point in each.points
    ]
    keys = [tag("li", _swatch(each.style), each.name) for each in figure.lines]
    keys += [tag("li", _sample(_ring(0, 0)), "on the Pareto front")] if figure.front else []
    axis = f"{figure.y_label}{' (logarithmic)' * figure.log} over {figure.x_label}"
    plot = tag("div", svg.canvas(HEIGHT, *parts, role="group", aria_label=figure.title), class_="plot")
    return tag("p", axis, class_="axis") + plot + tag("ul", *keys, class_="legend")


def _grid(across: Scale, up: Scale) -> list[Markup]:
    wide = [
        piece
        for tick in up.ticks(6)
        for piece in (
            svg.line(0, _down(up, tick), 100, _down(up, tick), "grid"),
            svg.text(0, _down(up, tick) + 4, number(tick), "end", dx=-8),
        )
    ]
    tall = [
        piece
        for tick in across.ticks()
        for piece in (
            svg.line(across.percent(tick), 0, across.percent(tick), HEIGHT, "grid"),
            svg.text(across.percent(tick), HEIGHT + 18, number(tick)),
        )
    ]
    return wide + tall


def _level(named: tuple[str, float] | None, up: Scale) -> list[Markup]:
    if named is None:
        return []
    name, value = named
    y = _down(up, value)
    return [svg.line(0, y, 100, y, "level"), svg.text(0, y + 14, f"{name} {value:.4g}", "start", dx=4)]


def _joined(each: Line, positions: dict[Point, tuple[float, float]]) -> list[Markup]:
    return [
        svg.line(*positions[start], *positions[end], f"line {svg.colour(each.style)}")
        for start, end in pairwise(each.points)
    ]


def _down(up: Scale, value: float) -> float:
    return round(HEIGHT * (1 - up.percent(value) / 100), 1)


def _ring(x: float, y: float) -> Markup:
    return tag("circle", cx=f"{x}%", cy=y, r=10, class_="ring")


def _swatch(style: int) -> Markup:
    return _sample(tag("path", d=svg.shape(style), class_=f"mark {svg.colour(style)}"))


def _sample(piece: Markup) -> Markup:
    return tag(
        "svg", piece, class_="swatch", viewBox="-11 -11 22 22", width=16, height=16, aria_hidden="true"
    )


@draw.register
def _intervals(figure: Intervals) -> Markup:
    ends = [end for item in figure.items for end in item.ends]
    across = around([*ends, figure.neutral], figure.log)
    strips = [
        _strip(item.name, item.label, _interval(item, across, figure.neutral))
        for item in figure.items[:MOST_STRIPS]
    ]
    return _strips(figure.x_label, strips, len(figure.items), across)


def _interval(item: Item, across: Scale, neutral: float) -> list[Markup]:
    low, high = (across.percent(end) for end in item.ends)
    middle, zero = STRIP / 2, across.percent(neutral)
    hint = f"{item.name}\n{item.label}"
    return [
        svg.line(zero, 0, zero, STRIP, "level"),
        svg.line(low, middle, high, middle, f"whisker {svg.colour(item.style)}"),
        svg.mark(across.percent(item.value), middle, item.style, hint, item.look),
    ]


@draw.register
def _bars(figure: Bars) -> Markup:
    across = around([sum(bar.values) for bar in figure.bars] + [0.0], start=0.0)
    strips = [
        _strip(bar.name, bar.label, _stack(bar.values, bar.style, across))
        for bar in figure.bars[:MOST_STRIPS]
    ]
    words = f"{figure.x_label}: {' (pale), then '.join(figure.parts)}"
    return _strips(words, strips, len(figure.bars), across)


def _stack(values: tuple[float, ...], style: int, across: Scale) -> list[Markup]:
    ends = [sum(values[:count]) for count in range(len(values) + 1)]
    look, last = f"bar {svg.colour(style)}", len(values) - 1
    top = (STRIP - BAR) / 2
    return [
        svg.box(across.percent(start), across.percent(end), top, BAR, look + " pale" * (part < last))
        for part, (start, end) in enumerate(pairwise(ends))
        if end > start
    ]


def _strips(words: str, strips: list[Markup], count: int, across: Scale) -> Markup:
    """Draw strips above a ruler; words above them name the axis, and how many of `count` are drawn."""
    if count > len(strips):
        words += f"; the first {len(strips):,} of {count:,} runs (--only chooses others)"
    return tag("p", words, class_="axis") + tag("div", *strips, _ruler(across), class_="strips")


def _strip(name: str, label: str, pieces: list[Markup]) -> Markup:
    return tag(
        "div",
        tag("span", name, class_="name"),
        svg.canvas(STRIP, *pieces),
        tag("span", label, class_="value"),
        class_="strip",
    )


def _ruler(across: Scale) -> Markup:
    ticks = across.ticks()
    marks = [svg.line(across.percent(tick), 0, across.percent(tick), 5, "tick") for tick in ticks]
    names = [svg.text(across.percent(tick), 18, number(tick)) for tick in ticks]
    axis = svg.canvas(STRIP, svg.line(0, 0, 100, 0, "tick"), *marks, *names)
    return tag("div", tag("span"), axis, tag("span"), class_="strip ruler")


@draw.register
def _heat_maps(figure: HeatMaps) -> Markup:
    values = figure.values
    low, high = min(values), max(values)
    scale = Scale(low, high, figure.log) if high > low else around(list(values), figure.log)
    return _colour_bar(scale) + tag("div", class_="grid-of-maps") + packed(figure, scale, CELL)


def _colour_bar(scale: Scale) -> Markup:
    boxes = [
        svg.box(100 * each / LEVELS, 100 * (each + 1) / LEVELS, 0, 12, f"h{each}") for each in range(LEVELS)
    ]
    ends = [svg.text(0, 27, f"{scale.low:.3g}", "start"), svg.text(100, 27, f"{scale.high:.3g}", "end")]
    return tag("div", svg.canvas(30, *boxes, *ends), class_="scale")
