"""Attention maps in a report: true and estimated side by side, of the rows that have them."""

from typing import Any

from experiments.report import attention_maps
from experiments.report.comparable import groups
from experiments.report.drawn import HeatMaps
from experiments.report.render_svg import draw
from tests.experiments.rows import finished

MAPS: dict[str, Any] = {
    "layers": ["model.layers.0.self_attn", "model.layers.4.self_attn"],
    "true": [[[1.0, 0.0], [0.25, 0.75]], [[0.5, 0.5], [0.0005, 0.9995]]],
    "estimated": [[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.3, 0.7]]],
}


def drawn(*given: dict[str, Any] | None) -> list[HeatMaps]:
    rows = [finished("none")]
    for index, content in enumerate(given):
        row = finished("sinq", 2 + index)
        row["samples"] |= {} if content is None else {"attention_maps": content}
        rows.append(row)
    (group,) = groups(rows)
    return attention_maps.maps(group)


def test_true_attention_is_left_and_the_estimate_right() -> None:
    (figure,) = drawn(MAPS, None)
    assert figure.kinds == ("0 q1", "0 q2", "4 q1", "4 q2")
    assert figure.blocks == ("k1", "k2", "|", "ê1", "ê2")
    (only,) = figure.maps
    assert only.values[0] == (1.0, None, None, 0.9, 0.1)
    assert only.values[3] == (None, 0.9995, None, 0.3, 0.7)  # what is below the scale is left out
    assert "k1" in draw(figure)


def test_maps_of_other_sizes_are_a_figure_of_their_own_and_no_maps_are_none() -> None:
    small = {name: values[:1] for name, values in MAPS.items()}
    found = drawn(MAPS, MAPS, small)
    assert sorted(len(figure.maps) for figure in found) == [1, 2]
    assert len({figure.key for figure in found}) == 2
    assert drawn(None) == []
