"""Figures as files: the same data as on the page, drawn by matplotlib as PNG, PDF or SVG, light or dark."""

from collections.abc import Iterable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure as Canvas

from experiments.common.files import atomic_write
from experiments.report.colours import HEAT, LIGHT, Theme, look
from experiments.report.drawn import Bars, Chart, HeatMaps, Intervals, Line
from experiments.report.scale import Scale, around, number

KINDS = ("png", "pdf", "svg")
MARKERS = "os^D"
WIDTH, ROW = 6.5, 0.26
"""Inches: width of a page's text, and height of a run's line."""
LETTERS, LETTER = 30, 0.1
"""Longest name beside axes of this width, and inches for each further letter."""
UNDATED = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Metadata to leave out, so that the same rows give the same file."""


def save(
    figure: object, stem: Path, theme: Theme = LIGHT, kinds: Sequence[str] = ("png", "pdf")
) -> list[Path]:
    """Write a figure as `<stem>.<kind>` for each kind; return the paths."""
    with rc_context(_style(theme)):
        canvas = draw(figure, theme)
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in kinds]
        for kind, path in zip(kinds, paths, strict=True):
            with atomic_write(path) as file:
                canvas.savefig(file, format=kind, dpi=200, metadata=UNDATED[kind])
    return paths


def _style(theme: Theme) -> dict[Any, Any]:
    """Return matplotlib's settings.

    Text stays text in a PDF (type 42). In an SVG it becomes paths, as a browser may not have the font.
    """
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    filled = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    fixed = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "pdf.fonttype": 42,
        "svg.fonttype": "path",
    }
    colours = dict.fromkeys(inked, theme.ink) | dict.fromkeys(filled, theme.background)
    return {**fixed, **colours, "svg.hashsalt": "sinq-harness"}


@singledispatch
def draw(figure: object, theme: Theme = LIGHT) -> Canvas:
    """Return a figure drawn by matplotlib."""
    raise TypeError(f"{type(figure).__name__} is no figure that matplotlib is told how to draw")


def _axes(height: float, x_label: str, title: str, names: Iterable[str]) -> tuple[Canvas, Axes]:
    """Return empty axes in a canvas that is wide enough for names beside them."""
    longest = max(map(len, names), default=0)
    width = WIDTH + LETTER * max(0, longest - LETTERS)
    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.subplots()
    axes.set_xlabel(x_label)
    axes.set_title(title, loc="left", fontsize="medium")
    return canvas, axes


def _look(style: int, theme: Theme) -> tuple[str, str]:
    """Return colour and marker of a style, the same as on the page."""
    colour, shape = look(style)
    return theme.methods[colour], MARKERS[shape]


@draw.register
def _chart(figure: Chart, theme: Theme = LIGHT) -> Canvas:
    canvas, axes = _axes(4.2, figure.x_label, figure.title, (line.name for line in figure.lines))
    axes.set_yscale("log" if figure.log else "linear")
    axes.set_ylabel(figure.y_label)
    axes.grid(axis="y", color=theme.grid, linewidth=0.6)
    if figure.level:
        name, height = figure.level
        axes.axhline(height, color=theme.ink, linestyle="dashed", linewidth=1, label=f"{name} {height:.4g}")
    for order, line in enumerate(figure.lines):
        _draw_line(axes, line, theme, 3 + order)
    if figure.front:
        ring: dict[str, Any] = {"mfc": "none", "mec": theme.ink, "ms": 13, "mew": 0.8, "zorder": 2}
        axes.plot([p.x for p in figure.front], [p.y for p in figure.front], "o", label="Pareto front", **ring)
    axes.set_ylim(*_heights(figure))
    ticks = Scale(*axes.get_ylim(), figure.log).ticks(6)
    axes.set_yticks(ticks, [number(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    canvas.legend(loc="outside right upper", frameon=False, fontsize="small")
    return canvas


def _heights(figure: Chart) -> tuple[float, float]:
    """Return the ends of the vertical axis."""
    heights = [point.y for line in figure.lines for point in line.points]
    heights += [figure.level[1]] if figure.level else []
    shown = heights if figure.ceiling is None else [min(heights), figure.ceiling]
    scale = around(shown, figure.log)
    return scale.low, figure.ceiling or scale.high


def _draw_line(axes: Axes, line: Line, theme: Theme, order: int) -> None:
    """Draw runs of one method with labels inside the marks. Lines to points above the axis run off it."""
    colour, marker = _look(line.style, theme)
    x, y = [point.x for point in line.points], [point.y for point in line.points]
    mark: dict[str, Any] = {"marker": marker, "ms": 9, "mec": theme.background, "mew": 0.8}
    axes.plot(x, y, color=colour, linewidth=1.1, label=line.name, zorder=order, **mark)
    centred: dict[str, Any] = {"ha": "center", "va": "center_baseline", "clip_on": True}
    for point in line.points:
        axes.text(
            point.x,
            point.y,
            point.label,
            fontsize=6,
            color=theme.background,
            zorder=order + 0.5,
            **centred,
        )


@draw.register
def _intervals(figure: Intervals, theme: Theme = LIGHT) -> Canvas:
    names = [item.name for item in figure.items]
    canvas, axes = _axes(ROW * len(names) + 1, figure.x_label, figure.title, names)
    for row, item in enumerate(figure.items):
        colour, marker = _look(item.style, theme)
        axes.hlines(row, *item.ends, color=colour)
        face, alpha = theme.background if item.look else colour, 0.4 if item.look == "faint" else 1.0
        axes.plot(item.value, row, marker=marker, color=colour, ms=5, markerfacecolor=face, alpha=alpha)
    axes.axvline(figure.neutral, color="gray", linestyle="dashed", linewidth=1)
    if figure.log:
        axes.set_xscale("log")
    _name_rows(axes, names)
    return canvas


@draw.register
def _bars(figure: Bars, theme: Theme = LIGHT) -> Canvas:
    names = [bar.name for bar in figure.bars]
    canvas, axes = _axes(ROW * len(names) + 1, figure.x_label, figure.title, names)
    for row, bar in enumerate(figure.bars):
        start, (colour, _) = 0.0, _look(bar.style, theme)
        for part, value in enumerate(bar.values):
            alpha = 1 if part == len(bar.values) - 1 else 0.45
            axes.barh(row, value, 0.6, left=start, color=colour, alpha=alpha)
            start += value
    _name_rows(axes, names)
    return canvas


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


@draw.register
def _heat_maps(figure: HeatMaps, theme: Theme = LIGHT) -> Canvas:
    height = len(figure.maps) * (0.15 * len(figure.kinds) + 0.45) + 0.4
    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    panels = canvas.subplots(len(figure.maps), 1, squeeze=False, sharex=True)[:, 0]
    low, high = min(figure.values), max(figure.values)
    norm = LogNorm(low, high) if figure.log and low > 0 else Normalize(low, high)
    for panel, each in zip(panels, figure.maps, strict=True):
        values = [[float("nan") if value is None else value for value in row] for row in each.values]
        image = panel.imshow(values, norm=norm, cmap=HEAT, aspect="auto", interpolation="nearest")
        panel.set_title(each.name, loc="left", fontsize="small")
        panel.set_yticks(range(len(figure.kinds)), figure.kinds, fontsize=6)
    step = max(1, -(-len(figure.blocks) // 16))
    panels[-1].set_xticks(range(0, len(figure.blocks), step), figure.blocks[::step])
    panels[-1].set_xlabel("decoder block")
    canvas.colorbar(image, ax=list(panels), label=figure.title, shrink=min(1, 2 / len(figure.maps)))
    return canvas
