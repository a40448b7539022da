"""Picture of the results: the time of each contender over that of its case's baseline, on one axis for all.

Cases stand below each other, in groups of a suite. Bars begin at 1, the baseline's time: to the left is
faster. Lines are quartiles, the tick is the contender's floor, and the number beside a bar is the ratio of
the table (`listing.py`). The baseline has no bar, and a colour is in the legend only where it is in a bar.
"""

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10
from typing import IO, Any

import altair as alt

from experiments.bench.listing import duration, number
from experiments.report.export import image
from experiments.report.figure import Figure, Rows
from experiments.report.theme import LIGHT, Theme

OURS, THEIRS = "this project", "others"
KINDS = (OURS, THEIRS)
"""Kinds of contenders, in the order of their colours."""
WIDTH, STEP, LETTER = 480, 17, 6.5
"""Pixels of the axis, of a bar, and of a letter of a name."""
LONG = 100
"""Ratio of the ends of an axis that has labels at powers of ten alone."""
ROOM = 1.15
"""Factor that the axis reaches beyond the smallest and the largest number."""


def draw(cases: Sequence[dict[str, Any]], file: IO[bytes], theme: Theme = LIGHT) -> None:
    """Draw the results of cases into a PNG file."""
    file.write(image(figure(cases), theme))


def figure(cases: Sequence[dict[str, Any]]) -> Figure:
    """Return the results of cases as a figure."""
    rows = tuple(row for position, case in enumerate(cases) for row in _rows(position, case))
    suites = list(dict.fromkeys(case["suite"] for case in cases))
    panels = [_suite(suite, rows, suite == suites[-1]) for suite in suites]
    chart = alt.vconcat(*panels, spacing=14)
    spec = {name: value for name, value in chart.to_dict().items() if name != "config"}
    return Figure("bench", "Time over the baseline's, less is faster", spec, rows)


def _rows(position: int, case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each contender of a case, times over the baseline's median."""
    unit = next(each["median"] for each in case["results"] if each["name"] == case["baseline"])
    for order, result in enumerate(case["results"]):
        low, high = (each / unit for each in result["quartiles"])
        yield {
            "suite": case["suite"], "case": f"{case['name']}; baseline {case['baseline']}",
            "position": position, "order": order, "name": result["name"],
            "kind": THEIRS if result["is_peer"] else OURS,
            "is_baseline": result["name"] == case["baseline"], "ratio": result["ratio"],
            "low": low, "high": high, "floor": result["floor_seconds"] / unit,
            "words": f"{number(result['ratio'])}× ({duration(result['median'])})",
        }  # fmt: skip


def _domain(rows: Rows) -> tuple[float, float]:
    """Return the ends of the axis that all cases share."""
    numbers = [row[name] for row in rows for name in ("ratio", "low", "high", "floor")]
    return min(numbers) / ROOM, max(numbers) * ROOM


def _values(low: float, high: float) -> list[float]:
    """Return the labels of the axis: powers of ten, of a short axis 2 and 5 too."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1, 2, 5) if high / low < LONG else (1,)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


def _suite(suite: str, rows: Rows, is_last: bool) -> alt.FacetChart:
    """Return the cases of a suite; only the last suite's axis has labels."""
    header = alt.Header(title=None, labelAnchor="start", labelOrient="top", labelFontSize=11)
    return (
        _case(rows, is_last)
        .facet(row=alt.Row("case:N", sort=alt.EncodingSortField("position"), header=header), spacing=6)
        .transform_filter(alt.datum.suite == suite)
        .resolve_scale(y="independent")
        .properties(title=alt.TitleParams(suite, anchor="start", frame="group"))
    )


def _case(rows: Rows, is_last: bool) -> alt.LayerChart:
    """Return the bars of a case, with quartiles, floors and numbers."""
    low, high = _domain(rows)
    axis = alt.Axis(
        title="time over the baseline's (line: quartiles; tick: floor)" if is_last else None,
        labels=is_last, ticks=is_last, format="~g", values=_values(low, high),
    )  # fmt: skip

    def across(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=alt.Scale(type="log", domain=[low, high], nice=False), axis=axis)

    extent = LETTER * max(len(row["name"]) for row in rows)
    names = alt.Axis(minExtent=extent, maxExtent=extent, domain=False, ticks=False)
    base = alt.Chart().encode(y=alt.Y("name:N", sort=alt.EncodingSortField("order"), title=None, axis=names))
    ratio = base.encode(x=across("ratio"))
    layers = (
        ratio.transform_filter("!datum.is_baseline").mark_bar().encode(x2=alt.datum(1), color=_color(rows)),
        base.mark_rule(style="level", strokeDash=[]).encode(x=across("low"), x2="high:Q"),
        base.mark_tick(style="picked", thickness=1.5, size=STEP - 7).encode(x=across("floor")),
        alt.Chart().mark_rule(style="level", strokeDash=[]).encode(x=alt.datum(1)),
        ratio.mark_text(style="beside", align="left", dx=8).encode(x=alt.value(WIDTH), text="words:N"),
    )
    chart = alt.LayerChart(layer=list(layers), data=alt.NamedData("rows"))
    return chart.properties(width=WIDTH, height=alt.Step(STEP))


def _color(rows: Rows) -> alt.Color:
    found = {row["kind"] for row in rows if not row["is_baseline"]}
    legend = alt.Legend(title=None, values=[kind for kind in KINDS if kind in found])
    return alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS), range="category"), legend=legend)
