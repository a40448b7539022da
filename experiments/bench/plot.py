"""Picture of the results: one panel per case, one bar per contender, on a logarithmic scale of time.

Whiskers are quartiles; the dashed line is the contender's floor.
"""

from typing import IO, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, THEIRS = "tab:blue", "tab:gray"
ROW, HEAD = 0.28, 1.1
"""Heights in inches: a bar, and a panel's title and axis."""


def draw(cases: list[dict[str, Any]], file: IO[bytes]) -> None:
    """Draw the results of cases into a PNG file."""
    heights = [ROW * len(case["results"]) + HEAD for case in cases]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, case in zip(panels, cases, strict=True):
        _panel(panel, case)
    figure.savefig(file, format="png", dpi=120)


def _panel(axes: Axes, case: dict[str, Any]) -> None:
    results = case["results"]
    positions = range(len(results))
    medians = [1000 * result["median"] for result in results]
    quartiles = [[1000 * result["quartiles"][side] for result in results] for side in (0, 1)]
    whiskers = [
        [abs(edge - median) for edge, median in zip(side, medians, strict=True)] for side in quartiles
    ]
    colours = [THEIRS if result["is_peer"] else OURS for result in results]
    axes.barh(positions, medians, xerr=whiskers, color=colours)
    for y, result in zip(positions, results, strict=True):
        floor = 1000 * result["floor_seconds"]
        axes.vlines(floor, y - 0.4, y + 0.4, colors="black", linestyles="dashed")
    axes.set_yticks(positions, [result["name"] for result in results])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds (blue: ours, grey: others, dashed: floor)")
    axes.set_title(f"{case['suite']}: {case['name']}", loc="left", fontsize="medium")
