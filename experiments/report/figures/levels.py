"""Levels of runs that are no points in a chart: the dense model, and the noise floor of divergences.

They are references, which no filter takes away.
"""

from typing import Any

import altair as alt

from experiments.report.comparable import Entry
from experiments.report.figures import series as looks
from experiments.report.figures.quality import is_floor

NUMBER = "format(datum.level, ',.4~r')"
FAR = 5
"""A level this many times below all runs is words on the lower edge, and no line."""


def row(entry: Entry, value: float | None) -> dict[str, Any] | None:
    """Return the row of a level; None for another run, or one without value."""
    if not value or not (entry.is_dense or is_floor(entry)):
        return None
    name = "dense" if entry.is_dense else f"{entry.name} (noise floor)"
    return {"of": entry.row["run_id"], "level": value, "name": name, "floor": is_floor(entry)}


def layers(up: alt.Y) -> tuple[alt.Chart, ...]:
    """Return lines with names, and words on the lower edge; rows have `lowest`, the least of all runs."""
    named = alt.Chart().transform_filter(looks.IS_REFERENCE)
    inside = named.transform_filter(f"!(datum.level < datum.lowest / {FAR})").encode(y=up)
    name = inside.transform_calculate(words=f"datum.name + ' ' + {NUMBER}").encode(text="words:N")
    left: dict[str, Any] = {"style": "beside", "align": "left", "dx": 4}
    right: dict[str, Any] = {"style": "beside", "align": "right", "dx": -4}
    below: dict[str, Any] = {"baseline": "top", "dy": 4, "clip": True}
    return (
        inside.mark_rule(style="level", clip=True),
        name.transform_filter("!datum.floor").mark_text(**left, **below).encode(x=alt.value(0)),
        name.transform_filter("datum.floor").mark_text(**right, **below).encode(x=alt.value("width")),
        named.transform_filter(f"datum.level < datum.lowest / {FAR}")
        .transform_calculate(words=f"'↓ ' + datum.name + ' ' + {NUMBER}")
        .mark_text(**left, baseline="bottom", dy=-4)
        .encode(x=alt.value(0), y=alt.value("height"), text="words:N"),
    )
