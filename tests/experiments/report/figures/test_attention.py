"""Attention maps in a report: true and estimated side by side, of the rows that have them."""

import itertools
from typing import Any

from experiments.report.comparable import groups
from experiments.report.figure import Figure
from experiments.report.figures import attention
from experiments.report.figures.series import series
from tests.experiments.report.scene import marks
from tests.experiments.rows import finished

MAPS: dict[str, Any] = {
    "layers": ["model.layers.0.self_attn", "model.layers.4.self_attn"],
    "true": [[[1.0, 0.0], [0.25, 0.75]], [[0.5, 0.5], [0.0005, 0.9995]]],
    "estimated": [[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.3, 0.7]]],
}


def drawn(*given: dict[str, Any] | None) -> list[Figure]:
    rows = [finished("none")]
    for index, content in enumerate(given):
        row = finished("sinq", 2 + index)
        row["samples"] |= {} if content is None else {"attention_maps": content}
        rows.append(row)
    (group,) = groups(rows)
    return attention.maps(group, series([group]))


def test_true_attention_is_left_and_the_estimate_right() -> None:
    (figure,) = drawn(MAPS, None)
    (row,) = figure.rows
    assert row["values"] == [
        [1.0, None, None, 0.9, 0.1],
        [0.25, 0.75, None, 0.2, 0.8],
        [0.5, 0.5, None, 0.4, 0.6],
        [None, 0.9995, None, 0.3, 0.7],  # below the scale is left out
    ]
    cells = marks(figure, "rect")
    assert len(cells) == 14
    columns = sorted({cell["x"] for cell in cells})
    gaps = [right - left for left, right in itertools.pairwise(columns)]
    assert [round(gap / gaps[0], 2) for gap in gaps] == [1, 2, 1]  # a gap between true and estimated
    assert len({cell["fill"] for cell in cells}) > 5


def test_maps_of_other_sizes_are_a_figure_of_their_own_and_no_maps_are_none() -> None:
    small = {name: values[:1] for name, values in MAPS.items()}
    found = drawn(MAPS, MAPS, small)
    assert sorted(len(figure.rows) for figure in found) == [1, 2]
    assert len({figure.key for figure in found}) == 2
    assert drawn(None) == []
