"""Perplexity over size, one line per method, and the Pareto front: runs that no other run beats on both."""

from collections.abc import Callable
from math import isfinite

from experiments.report.comparable import Entry, Group
from experiments.report.drawn import Chart, Line, Point
from experiments.results.paths import get_path

SIZES: tuple[tuple[str, str, str, float], ...] = (
    ("bits", "size.bits_per_weight", "bits per weight of the linear layers, scales included", 1),
    ("bytes", "size.model_nbytes", "MB stored, whole model", 1e-6),
)
"""Key, path in the metrics, axis label, factor."""
CEILING = 30
"""Multiple of the lowest perplexity at which the axis ends.

Higher values only say that the model is destroyed, and would flatten all others.
"""


def charts(group: Group) -> list[Chart]:
    """Return a chart per size that was measured."""
    return [chart for key, path, label, factor in SIZES if (chart := _chart(group, key, path, label, factor))]


def _chart(group: Group, key: str, path: str, label: str, factor: float) -> Chart | None:
    def point(entry: Entry) -> Point | None:
        size = get_path(entry.row["metrics"], path)
        value = get_path(entry.row["metrics"], "perplexity.value")
        if size is None or value is None or not isfinite(value):
            return None
        unit = label.partition(" of ")[0].partition(",")[0]
        hint = f"{entry.name}\nperplexity {value:,.5g}\n{size * factor:.5g} {unit}\nrun {entry.row['run_id']}"
        return Point(size * factor, value, hint, entry.bits)

    compressed = [entry for entry in group.entries if not entry.is_dense]
    lines = _lines(compressed, point)
    if not lines:
        return None
    dense = get_path(group.dense.row["metrics"], "perplexity.value") if group.dense else None
    level = ("dense", dense) if dense is not None and isfinite(dense) else None
    missing = [entry.name for entry in compressed if point(entry) is None]
    every = [point for line in lines for point in line.points]
    ceiling = _ceiling([*(each.y for each in every), *(level[1:] if level else ())])
    notes = [f"Not drawn: {', '.join(missing)} (perplexity not finite, or no size)."] if missing else []
    notes += [f"Perplexities above {ceiling:,.4g} lie beyond the upper edge."] if ceiling else []
    return Chart(
        f"pareto_{key}",
        "Perplexity over size",
        label,
        "perplexity",
        lines,
        front(every),
        level,
        ceiling,
        " ".join(notes),
    )


def _ceiling(values: list[float]) -> float | None:
    """Return the upper end of the axis, or None where all values lie below it."""
    ceiling = CEILING * min(values)
    return ceiling if max(values) > ceiling else None


def _lines(entries: list[Entry], point: Callable[[Entry], Point | None]) -> tuple[Line, ...]:
    families: dict[tuple[str, int], list[Point]] = {}
    for entry in entries:
        if found := point(entry):
            families.setdefault((entry.family, entry.style), []).append(found)
    return tuple(
        Line(name, style, tuple(sorted(points, key=lambda each: each.x)))
        for (name, style), points in families.items()
    )


def front(points: list[Point]) -> tuple[Point, ...]:
    """Return the points that are smaller than every point with a lower perplexity, from left to right."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x, each.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return tuple(best)
