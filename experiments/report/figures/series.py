"""Looks of runs, the same in all figures of a report: a colour for each method, a shape for each group size.

Both legends switch series on a click. The run that a reader picked has a ring.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import altair as alt

from experiments.report.comparable import Entry, Group
from experiments.report.figure import Rows, Spec
from experiments.report.theme import METHODS
from experiments.results import flat

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
NO_GROUP = "none"
ROWS = alt.NamedData("rows")
IS_RUN, IS_REFERENCE = "isValid(datum.run)", "!isValid(datum.run)"
PICKED = "picked !== '' && datum.run === picked"
ZOOM = "wheel![event.shiftKey || event.ctrlKey]"
"""The wheel alone scrolls the page."""
SWATCH, LETTER = 30, 6
"""Pixels of a sample in a legend, and of a letter beside it."""
HOLLOW = " (hollow)"


@dataclass(frozen=True)
class Series:
    """Methods and group sizes of a report, in the order of their colours and shapes."""

    methods: tuple[str, ...]
    sizes: tuple[str, ...]
    title: str = "method"
    """Title of the legend of colours."""
    found: frozenset[tuple[str, str]] = frozenset()
    """Methods with group sizes that a figure has, and its legends name."""

    def among(self, rows: Rows) -> "Series":
        """Return these series with legends of what the rows of a figure have."""
        return replace(self, found=frozenset((row["method"], row["group"]) for row in rows if "run" in row))

    def color(self, hollow: bool = False) -> alt.Color:
        """Return the colour of a run's method, with a legend.

        Args:
            hollow: methods after the last colour have hollow marks, and the legend says which.
        """
        legend = self._legend("method", hollow)
        return alt.Color("method:N", scale=self._scale("category"), legend=legend)

    def dash(self) -> alt.StrokeDash:
        """Return the dashes of a line, for methods after the last colour."""
        laps = [[5, 3] if self.is_hollow(method) else [1, 0] for method in self.methods]
        return alt.StrokeDash("method:N", scale=self._scale(laps), legend=self._legend("method", True))

    def is_hollow(self, method: str) -> bool:
        """True for a method whose colour another one has."""
        return self.methods.index(method) >= len(METHODS)

    def shape(self) -> alt.Shape:
        """Return the shape of a run's group size; a legend only where there are several."""
        shapes = [SHAPES[number % len(SHAPES)] for number in range(len(self.sizes))]
        scale = alt.Scale(domain=list(self.sizes), range=shapes)
        several = len({group for _, group in self.found}) > 1
        return alt.Shape("group:N", scale=scale, legend=self._legend("group") if several else None)

    def _scale(self, of_methods: Any, **how: Any) -> alt.Scale:
        return alt.Scale(domain=list(self.methods), range=of_methods, **how)

    def _legend(self, field: Literal["method", "group"], hollow: bool = False) -> alt.Legend:
        """Return a legend of the values that occur, in as many columns as the figure is wide enough for."""
        known, index = (self.methods, 0) if field == "method" else (self.sizes, 1)
        values = [each for each in known if each in {pair[index] for pair in self.found}]
        named = [each for each in values if hollow and self.is_hollow(each)]
        widest = SWATCH + LETTER * max(len(each) + len(HOLLOW) * (each in named) for each in values)
        return alt.Legend(
            title="group size" if field == "group" else self.title,
            values=values,
            columns=alt.ExprRef(f"max(1, floor(width / {widest}))"),
            labelExpr=f"datum.label + (indexof({json.dumps(named)}, datum.label) < 0 ? '' : '{HOLLOW}')",
            symbolOpacity=1,
        )


def series(groups: Iterable[Group]) -> Series:
    """Return the methods of all groups in order of appearance, dense ones last, and the sizes, ascending."""
    entries = sorted((entry for group in groups for entry in group.entries), key=lambda each: each.is_dense)
    methods = dict.fromkeys(method_of(entry) for entry in entries)
    sizes = {size_of(entry) for entry in entries}
    return Series(tuple(methods), tuple(sorted(sizes, key=lambda size: (size == NO_GROUP, len(size), size))))


def method_of(entry: Entry) -> str:
    """Return the name of a run's method, as it was chosen."""
    return str(entry.row["choices"].get("method", entry.row["name"]))


def size_of(entry: Entry) -> str:
    """Return a run's group size in words."""
    size = flat.facts(entry.row)["group_size"]
    return NO_GROUP if size is None else str(size)


def facts(entry: Entry, series: Series) -> dict[str, Any]:
    """Return the fields that every row of a run has."""
    method = method_of(entry)
    return {
        "run": entry.row["run_id"], "name": entry.name, "method": method, "group": size_of(entry),
        "bits": entry.bits, "family": entry.family, "hollow": series.is_hollow(method),
    }  # fmt: skip


SHOWN_METHODS = alt.selection_point(name="shown_methods", fields=["method"], bind="legend")
SHOWN_GROUPS = alt.selection_point(name="shown_groups", fields=["group"], bind="legend")
RUN_PICKED = alt.param(name="picked", value="")


def zoomed(*axes: Literal["x", "y"]) -> alt.Parameter:
    """Return the parameter by which a reader zooms into axes."""
    return alt.selection_interval(name="zoom", bind="scales", encodings=[*axes], zoom=ZOOM)


def faded(opacity: float = 1.0) -> Any:
    """Return the opacity of a mark whose series the legends show, or not."""
    return alt.when(SHOWN_METHODS & SHOWN_GROUPS).then(alt.value(opacity)).otherwise(alt.value(0.08))


def marks(runs: alt.Chart, size: int, hollow: str = "datum.hollow") -> tuple[alt.Chart, alt.Chart]:
    """Return the full and the hollow marks of runs.

    Args:
        hollow: expression that is true where a mark is hollow.
    """
    full = runs.transform_filter(f"!({hollow})").mark_point(filled=True, size=size, clip=True)
    empty = runs.transform_filter(hollow).mark_point(filled=False, size=0.8 * size, strokeWidth=2, clip=True)
    return full, empty


def ring(chart: alt.Chart, size: int = 420) -> alt.Chart:
    """Return the ring around the picked run, at the position that `chart` encodes."""
    return chart.transform_filter(PICKED).mark_point(style="picked", size=size, clip=True)


def labels(runs: alt.Chart) -> tuple[alt.Chart, ...]:
    """Return the bits in the marks of runs, in full ones in the colour of the page."""
    return tuple(
        runs.transform_filter(f"{no}datum.hollow")
        .mark_text(style=style, clip=True)
        .encode(text="bits:N", opacity=faded())
        for no, style in (("!", "inside"), ("", "inside_hollow"))
    )


def layered(*layers: alt.Chart) -> alt.LayerChart:
    """Return charts over each other that share their axes and the figure's rows."""
    return alt.LayerChart(layer=list(layers), data=ROWS)


FITTED = alt.AutoSizeParams(type="fit-x", contains="padding", resize=True)
"""As wide as the page, and as high as legends are at that width."""


def spec_of(chart: alt.LayerChart, description: str, **properties: Any) -> Spec:
    """Return the specification of a chart, without the configuration that Altair adds."""
    whole = chart.add_params(RUN_PICKED).properties(description=description, autosize=FITTED, **properties)
    # Altair's own check takes as long as all the rest; tests compile every specification.
    return {name: value for name, value in whole.to_dict(validate=False).items() if name != "config"}


def first(most: int, together: str | None = None) -> list[Any]:
    """Return the transforms that number the shown runs from 1, and leave the first ones and references.

    Runs are in the order in which the page's table has them.

    Args:
        together: field whose equal values are counted once; these are numbered in their order.
    """
    how: dict[str, Any] = {"op": "dense_rank" if together else "row_number", "as": "position"}
    sort = [alt.SortField(together)] if together else alt.Undefined
    return [
        alt.CalculateTransform(**{"calculate": IS_RUN, "as": "is_run"}),
        alt.WindowTransform(window=[alt.WindowFieldDef(**how)], sort=sort, groupby=["is_run"]),
        alt.FilterTransform(f"!datum.is_run || datum.position <= {most}"),
    ]


def counted(count: int, most: int, note: str) -> str:
    """Return a note that says too how many of `count` runs are drawn."""
    if count <= most:
        return note
    return f"{note} At most {most} of the {count:,} runs are drawn, the first that are shown.".strip()
