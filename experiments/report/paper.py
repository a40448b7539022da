"""Figures for a paper: the same data as on the page, drawn by matplotlib, as PNG and PDF."""

from functools import singledispatch
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure as Canvas

from experiments.report.colours import HEAT, METHODS, look
from experiments.report.figures import Bars, Chart, HeatMaps, Intervals
from experiments.report.scale import Scale, number

MARKERS = "os^D"
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42, "svg.fonttype": "none"}
"""Type 42: text in the PDF stays text."""
WIDTH, ROW = 6.5, 0.26
"""Inches: of a page's text, and of one run's line."""


def save(figure: object, stem: Path) -> list[Path]:
    """Write `<stem>.png` and `<stem>.pdf`."""
    with rc_context(STYLE):
        canvas = draw(figure)
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
        for path in paths:
            canvas.savefig(path, dpi=200)
    return paths


@singledispatch
def draw(figure: object) -> Canvas:
    """A figure as matplotlib has it."""
    raise TypeError(f"{type(figure).__name__} is no figure that matplotlib is told how to draw")


def _axes(height: float, x_label: str, title: str) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    axes = canvas.subplots()
    axes.set_xlabel(x_label)
    axes.set_title(title, loc="left", fontsize="medium")
    return canvas, axes


def _look(style: int) -> tuple[str, str]:
    """Colour and marker, as on the page."""
    colour, shape = look(style)
    return METHODS[colour], MARKERS[shape]


@draw.register
def _chart(figure: Chart) -> Canvas:
    canvas, axes = _axes(3.6, figure.x_label, figure.title)
    axes.set_yscale("log")
    axes.set_ylabel(figure.y_label)
    for line in figure.lines:
        colour, marker = _look(line.style)
        axes.plot([p.x for p in line.points], [p.y for p in line.points], color=colour, marker=marker, markersize=5, label=line.name)
    axes.plot([p.x for p in figure.front], [p.y for p in figure.front], "o", mfc="none", mec="black", ms=10, mew=0.8, label="Pareto front")
    if figure.level:
        axes.axhline(figure.level[1], color="gray", linestyle="dashed", linewidth=1, label=f"{figure.level[0]} {figure.level[1]:.4g}")
    ticks = Scale(*axes.get_ylim(), log=True).ticks(6)
    axes.set_yticks(ticks, [number(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.legend(frameon=False, fontsize="small")
    return canvas


@draw.register
def _intervals(figure: Intervals) -> Canvas:
    canvas, axes = _axes(ROW * len(figure.items) + 1, figure.x_label, figure.title)
    for row, item in enumerate(figure.items):
        colour, marker = _look(item.style)
        axes.hlines(row, item.low, item.high, color=colour)
        axes.plot(item.value, row, marker=marker, color=colour, markersize=5, markerfacecolor=colour if item.decided else "white")
    axes.axvline(figure.neutral, color="gray", linestyle="dashed", linewidth=1)
    if figure.log:
        axes.set_xscale("log")
    _name_rows(axes, [item.name for item in figure.items])
    return canvas


@draw.register
def _bars(figure: Bars) -> Canvas:
    canvas, axes = _axes(ROW * len(figure.bars) + 1, figure.x_label, figure.title)
    for row, bar in enumerate(figure.bars):
        start = 0.0
        for part, value in enumerate(bar.values):
            axes.barh(row, value, 0.6, left=start, color=_look(bar.style)[0], alpha=1 if part == len(bar.values) - 1 else 0.45)
            start += value
    _name_rows(axes, [bar.name for bar in figure.bars])
    return canvas


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


@draw.register
def _heat_maps(figure: HeatMaps) -> Canvas:
    canvas = Canvas(figsize=(WIDTH, len(figure.maps) * (0.15 * len(figure.kinds) + 0.45) + 0.4), layout="constrained")
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
