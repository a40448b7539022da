"""Figures as plain data, before anybody draws them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One run in a chart."""

    x: float
    y: float
    hint: str
    """What the pointer shows: the run and its numbers, in lines."""
    label: str = ""
    """Short, beside the point; such as its bits."""


@dataclass(frozen=True)
class Line:
    """Runs of one method, joined."""

    name: str
    style: int
    """The same number means the same colour in all figures of a report."""
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """Lines over two axes; the vertical one is logarithmic."""

    key: str
    """Short and of letters, for file names and anchors; unlike any other of the same group."""
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    front: tuple[Point, ...] = ()
    """Points that no other one beats on both axes, from left to right."""
    level: tuple[str, float] | None = None
    """A height drawn across, and its name."""
    ceiling: float | None = None
    """Upper end of the vertical axis, below the highest point; None where all points are shown."""
    note: str = ""

    def drawn(self, point: Point) -> float:
        """Return the height of a point that is kept inside the axis."""
        return point.y if self.ceiling is None else min(point.y, self.ceiling)


@dataclass(frozen=True)
class Item:
    """A value with an interval around it."""

    name: str
    style: int
    value: float
    low: float
    high: float
    label: str
    """The value in words, beside it."""
    decided: bool
    """Whether the interval says something; drawn hollow where it does not."""


@dataclass(frozen=True)
class Intervals:
    """Values with intervals below one another, beside a value that means "no difference"."""

    key: str
    title: str
    x_label: str
    items: tuple[Item, ...]
    neutral: float
    log: bool = False
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """Parts that add up, in the order of `Bars.parts`."""

    name: str
    style: int
    values: tuple[float, ...]
    label: str


@dataclass(frozen=True)
class Bars:
    """Sums below one another."""

    key: str
    title: str
    x_label: str
    parts: tuple[str, ...]
    bars: tuple[Bar, ...]
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """One run's layers: a value per kind of layer and decoder block; None where the model has no such layer."""

    name: str
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class HeatMaps:
    """Maps of several runs of one model, on one scale."""

    key: str
    title: str
    kinds: tuple[str, ...]
    blocks: tuple[str, ...]
    maps: tuple[HeatMap, ...]
    log: bool = False
    note: str = ""

    @property
    def values(self) -> tuple[float, ...]:
        """All that are there, of all maps."""
        return tuple(value for each in self.maps for row in each.values for value in row if value is not None)


Figure = Chart | Intervals | Bars | HeatMaps
