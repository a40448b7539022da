"""All figures of a group: specifications that Vega-Lite takes without a warning, which name no colour."""

import json
import re
from collections.abc import Iterator
from typing import Any

import altair as alt
import pytest
import vl_convert
from jsonschema import ValidationError

from experiments.report.comparable import groups
from experiments.report.figure import Figure
from experiments.report.figures import trainings
from experiments.report.figures.all import figures_of
from experiments.report.figures.series import series
from experiments.report.reference import counterparts
from experiments.report.theme import DARK, LIGHT, Theme
from experiments.results.record import Row
from tests.experiments.checkpoints import course
from tests.experiments.report.figures.test_attention import MAPS
from tests.experiments.report.figures.test_curves import diverged
from tests.experiments.rows import finished, layers

KEYS = [
    "pareto_bits", "pareto_bytes", "pareto_decode", "kl_bits", "kl_bytes", "kl_decode", "forest", "time",
    "losses", "percentiles", "by_confidence", "zero_shot_1", "latency_prefill", "latency_decode",
    "relative_error", "output_error", "imbalance_after", "attention",
]  # fmt: skip


def everything() -> list[Row]:
    rows = [finished("none"), diverged("sinq", 0.1), diverged("sinq", 0.2, 3), diverged("rtn", 0.3)]
    for row in rows:
        row["metrics"]["zero_shot"] = {"tasks": {"piqa": {"acc": 0.5, "acc_stderr": 0.1, "items": 9}}}
    rows[1]["samples"] |= {
        "training": {"loss": [3.0, 2.0, 1.0]},
        "attention_maps": MAPS,
        "layer_error": {"relative_error": {"m.0.a": 0.1, "m.1.a": 0.2}},
    }
    return rows


def all_figures() -> list[Figure]:
    rows = everything()
    (group,) = groups(rows)
    found = counterparts(group, None)
    assert found is not None
    pairs = zip(group.rows, found.comparisons, strict=True)
    comparisons = {row["run_id"]: each for row, each in pairs if each}
    tables = {row["run_id"]: layers(row) for row in rows}
    made = figures_of(group, series([group]), tables, comparisons, "sinq")
    steps = course({0: 2.5, 10: 0.0, 60: 1.3})
    return [*made, *trainings.over_steps(steps)]


FIGURES = all_figures()


def nodes(value: Any) -> Iterator[Any]:
    yield value
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inside:
        yield from nodes(each)


def test_a_group_has_all_figures_that_its_rows_have_numbers_for() -> None:
    assert [figure.key for figure in FIGURES] == [*KEYS, "over_steps_entropy"]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_a_specification_compiles_without_a_warning(
    figure: Figure, theme: Theme, capfd: pytest.CaptureFixture[str]
) -> None:
    vega = vl_convert.vegalite_to_vega(figure.standalone(theme), show_warnings=True)
    assert vega["background"] == theme.background
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_a_specification_has_neither_rows_nor_colours(figure: Figure) -> None:
    spec = json.loads(json.dumps(figure.spec))
    assert [node["data"] for node in nodes(spec) if isinstance(node, dict) and "data" in node] == [
        {"name": "rows"}
    ]
    assert not {"config", "datasets"} & set(spec)
    strings = [node for node in nodes(spec) if isinstance(node, str)]
    assert not [each for each in strings if re.match(r"#[0-9a-fA-F]{3,8}$|rgb|hsl", each)]
    fixed = [
        node[key]
        for node in nodes(spec)
        if isinstance(node, dict)
        for key in ("color", "fill", "stroke")
        if isinstance(node.get(key), str) or "value" in (node.get(key) or {})
    ]
    assert fixed == []


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_a_page_can_pick_and_describe_and_fit_every_figure(figure: Figure) -> None:
    spec = figure.spec
    assert {"name": "picked", "value": ""} in spec["params"]
    assert "picked" in json.dumps(spec["layer"])
    assert spec["width"] == "container"
    assert len(figure.description) > 20
    assert re.fullmatch(r"[a-z0-9_]+", figure.key)
    tips = [layer["encoding"]["tooltip"] for layer in spec["layer"] if "tooltip" in layer.get("encoding", {})]
    assert tips
    for tip in tips:
        assert [each["title"] for each in tip][:: len(tip) - 1] == ["run", "id"]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_rows_are_plain_json_and_runs_have_ids_and_names(figure: Figure) -> None:
    assert json.loads(json.dumps(figure.rows, allow_nan=False)) == list(figure.rows)
    for row in figure.rows:
        assert {"run", "name"} <= set(row) or "run" not in row


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_a_figure_without_runs_that_are_shown_is_drawn_empty(figure: Figure) -> None:
    spec = figure.standalone(LIGHT)
    spec["datasets"] = {"rows": [row for row in figure.rows if "run" not in row]}
    assert vl_convert.vegalite_to_svg(spec).startswith("<svg")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_a_specification_fits_the_schema_of_vega_lite(figure: Figure) -> None:
    """Pages do not ask for this, as it takes longer than making the figure."""
    spec = json.loads(json.dumps(figure.spec))
    assert alt.Chart.from_dict(spec)
    spec["layer" if "layer" in spec else "spec"] = "none"
    with pytest.raises(ValidationError):
        alt.Chart.from_dict(spec)
