"""Heat maps of layers: values where their names say, and the first runs that are shown."""

import numpy as np
import pandas as pd
import pytest

from experiments.report.comparable import groups
from experiments.report.figure import Figure
from experiments.report.figures import layers
from experiments.report.figures.heat_maps import MOST
from experiments.report.figures.series import series
from experiments.results.record import Row
from tests.experiments.report.scene import marks, words
from tests.experiments.rows import finished
from tests.experiments.rows import layers as table_of


def drawn(*rows: Row, tables: dict[str, pd.DataFrame] | None = None) -> dict[str, Figure]:
    (group,) = groups(list(rows))
    found = {row["run_id"]: table_of(row) for row in rows} if tables is None else tables
    return {figure.key: figure for figure in layers.figures(group, series([group]), found)}


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("model.layers.11.self_attn.q_proj", ("self_attn.q_proj", "11")),
        ("transformer.h.3.mlp.c_fc", ("mlp.c_fc", "3")),
        ("model.layers.2.mlp.experts.7.up_proj", ("mlp.experts.up_proj", "2")),
        ("lm_head", ("lm_head", "–")),
    ],
)
def test_a_layers_position_is_read_from_its_name(name: str, position: tuple[str, str]) -> None:
    assert layers.kind_and_block(name) == position


def test_a_map_has_a_line_for_each_kind_and_a_column_for_each_block() -> None:
    found = drawn(finished("sinq"), finished("rtn"))
    assert list(found) == ["relative_error", "imbalance_after"]
    row = next(row for row in found["relative_error"].rows if row["run"] == "sinq4t")
    assert np.array(row["values"]) == pytest.approx(2**-4.5 * np.array([[1, 3, 5], [2, 4, 6]]), rel=1e-3)
    cells = marks(found["relative_error"], "rect")
    assert len(cells) == 12
    assert len({cell["x"] for cell in cells}) == 3
    assert len({cell["y"] for cell in cells}) == 4
    assert words(found["relative_error"]) == ["rtn 4-bit g64", "sinq 4-bit g64"]
    names = [str(each) for each in found["relative_error"].spec["layer"]]
    assert any('["q_proj", "down_proj"]' in each for each in names)


def test_all_maps_are_on_one_scale() -> None:
    found = drawn(finished("sinq"), finished("sinq", 3))["relative_error"]
    by_run = {row["run"]: row["values"] for row in found.rows}
    cells = marks(found, "rect")
    alone = marks(found, "rect", lambda row: row["run"] == "sinq4t")
    assert {cell["fill"] for cell in alone} != {cell["fill"] for cell in cells[:6]}
    assert by_run["sinq3t"][0][0] == pytest.approx(2 * by_run["sinq4t"][0][0], rel=1e-3)


def test_layers_without_a_finite_value_and_experts_of_one_block() -> None:
    names = ["m.0.experts.0.up", "m.0.experts.1.up", "m.1.experts.0.up", "m.1.down"]
    table = pd.DataFrame(
        {
            "name": names,
            "relative_error": [0.1, 0.3, float("nan"), 0.5],
            "imbalance_after": [1.0, 3.0, 0.0, 2.0],
        }
    )
    found = drawn(finished("sinq"), tables={"sinq4t": table})
    (error,), (imbalance,) = found["relative_error"].rows, found["imbalance_after"].rows
    assert error["values"] == [[0.2, None], [None, 0.5]]
    assert imbalance["values"] == [[2.0, None], [None, 2.0]]
    assert len(marks(found["relative_error"], "rect")) == 2


@pytest.mark.parametrize("value", [0.25, 1.0])
def test_maps_of_one_value_are_drawn(value: float) -> None:
    table = pd.DataFrame({"name": ["m.0.a", "m.1.a"], "relative_error": value, "imbalance_after": value})
    for figure in drawn(finished("sinq"), tables={"sinq4t": table}).values():
        assert [cell["fill"].startswith(("#", "rgb")) for cell in marks(figure, "rect")] == [True, True]


def test_the_first_runs_that_are_shown_have_maps() -> None:
    rows = []
    for number in range(MOST + 3):
        row = finished("sinq") | {"run_id": f"r{number:02}"}
        row["options"]["method"]["number"] = row["identity"]["method"]["number"] = number
        rows.append(row)
    figure = drawn(*rows)["relative_error"]
    order = [row["name"] for row in figure.rows]
    assert words(figure) == order[:MOST]
    assert words(figure, lambda row: row["name"] != order[0]) == order[1 : MOST + 1]
    assert f"At most {MOST} of the {MOST + 3} runs" in figure.note
