"""Figures as plain data, before they are drawn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A run in a chart."""

    x: float
    y: float
    hint: str
    """Text at the pointer: the run and its numbers, one per line."""
    label: str = ""
    """Short text at the point, such as the bits."""


@dataclass(frozen=True)
class Line:
    """Runs of one method, joined by a line."""

    name: str
    style: int
    """Number of a colour and shape, the same in all figures of a report."""
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """Lines over two axes."""

    key: str
    """Name in file names and anchors: short, letters only, unique in the group."""
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    front: tuple[Point, ...] = ()
    """Points that no other point beats on both axes, from left to right."""
    level: tuple[str, float] | None = None
    """Name and height of a horizontal line."""
    ceiling: float | None = None
    """Upper end of the vertical axis, below the highest point; None where all points are shown."""
    note: str = ""
    log: bool = True
    """The vertical axis is logarithmic."""

    def drawn(self, point: Point) -> float:
        """Return the height of a point, limited to the axis."""
        return point.y if self.ceiling is None else min(point.y, self.ceiling)


@dataclass(frozen=True)
class Item:
    """A value with an interval around it."""

    name: str
    style: int
    value: float
    interval: tuple[float, float] | None
    """Ends of the line through the mark; None where there is none, and the mark is faint."""
    label: str
    """The value in words, beside it."""
    decided: bool
    """True where the interval excludes no difference; drawn hollow where it does not."""

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the interval; the value twice where there is none."""
        return self.interval or (self.value, self.value)

    @property
    def look(self) -> str:
        """Look of the mark: "" for a full one, "hollow", or "faint"."""
        return "faint" if self.interval is None else "" if self.decided else "hollow"


@dataclass(frozen=True)
class Intervals:
    """Values with intervals, one per row, and the `neutral` value that stands for no difference."""

    key: str
    title: str
    x_label: str
    items: tuple[Item, ...]
    neutral: float
    log: bool = False
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """Values that add up, in the order of `Bars.parts`."""

    name: str
    style: int
    values: tuple[float, ...]
    label: str


@dataclass(frozen=True)
class Bars:
    """Stacked bars, one per row."""

    key: str
    title: str
    x_label: str
    parts: tuple[str, ...]
    bars: tuple[Bar, ...]
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Layers of a run: a value per kind of layer and decoder block; None where there is no such layer."""

    run_id: str
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
    across: str = "Decoder blocks across"
    """Words for the columns."""

    @property
    def values(self) -> tuple[float, ...]:
        """All values of all maps, without None."""
        return tuple(value for each in self.maps for row in each.values for value in row if value is not None)


Figure = Chart | Intervals | Bars | HeatMaps
