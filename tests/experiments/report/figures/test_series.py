"""Looks of runs: a colour for each method, a shape for each group size, hollow marks after the last one."""

from typing import Any

from experiments.report.comparable import groups
from experiments.report.figure import Figure
from experiments.report.figures import pareto
from experiments.report.figures.series import Series, series
from experiments.report.theme import METHODS
from experiments.results.record import Row
from tests.experiments.report.scene import ids, marks
from tests.experiments.rows import finished


def drawn(*rows: Row, looks: Series | None = None) -> Figure:
    (group,) = groups(list(rows))
    return pareto.figures(group, looks or series([group]))[0]


def looks_of(figure: Figure) -> dict[str, tuple[Any, Any]]:
    symbols = marks(figure, "symbol")
    items = zip(ids(symbols), symbols, strict=True)
    return {run: (item.get("stroke") or item["fill"], item["shape"]) for run, item in items}


def test_a_method_has_one_colour_and_a_group_size_one_shape() -> None:
    rows = [finished(method, group_size=size) for method in ("sinq", "rtn") for size in (32, 64)]
    found = looks_of(drawn(finished("none"), *rows))
    assert len(set(found.values())) == 4
    for method in ("sinq", "rtn"):
        assert found[f"{method}4t32"][0] == found[f"{method}4t64"][0]
    for size in (32, 64):
        assert found[f"sinq4t{size}"][1] == found[f"rtn4t{size}"][1]
    assert found["sinq4t32"][0] != found["rtn4t32"][0]


def test_a_method_has_the_same_colour_in_every_group() -> None:
    first = [finished("none"), finished("rtn"), finished("sinq")]
    second = [finished("none", text="u"), finished("sinq", text="u")]
    found = groups(first + second)
    looks = series(found)
    assert looks.methods == ("rtn", "sinq", "none")
    one, other = (looks_of(pareto.figures(group, looks)[0]) for group in found)
    assert one["sinq4t"][0] == other["sinq4u"][0] == METHODS[1]


def test_group_sizes_are_in_the_order_of_numbers_and_none_is_last() -> None:
    rows = [finished("sinq", group_size=size) for size in (128, 32, 64)]
    assert series(groups([finished("none"), *rows])).sizes == ("32", "64", "128", "none")


def test_methods_after_the_last_colour_are_hollow_and_the_legend_says_so() -> None:
    rows = []
    for number in range(len(METHODS) + 2):
        row = finished("sinq") | {"run_id": f"r{number}"}
        row["choices"] = row["choices"] | {"method": f"m{number}"}
        row["options"]["method"]["number"] = row["identity"]["method"]["number"] = number
        rows.append(row)
    figure = drawn(*rows)
    symbols = dict(zip(ids(found := marks(figure, "symbol")), found, strict=True))
    hollow = {run for run, item in symbols.items() if item["fill"] == "transparent"}
    names = {row["run"]: row["method"] for row in figure.rows if "run" in row}
    looks = series(groups(rows))
    assert {names[run] for run in hollow} == set(looks.methods[len(METHODS) :])
    first, ninth = looks.methods[0], looks.methods[len(METHODS)]
    colours = {names[run]: item.get("stroke") or item["fill"] for run, item in symbols.items()}
    assert symbols
    assert colours[ninth] == METHODS[0]
    assert [item["fill"] for run, item in symbols.items() if names[run] == first] == [METHODS[0]]


def test_legends_name_what_occurs() -> None:
    looks = Series(("awq", "rtn", "sinq", "none"), ("32", "64", "none"))
    figure = drawn(finished("none"), finished("sinq"), finished("rtn"), looks=looks)
    legends = [
        layer["encoding"][channel]["legend"]
        for layer in figure.spec["layer"]
        for channel in ("color", "shape")
        if channel in layer["encoding"]
    ]
    assert {str(legend and legend["values"]) for legend in legends} == {"['rtn', 'sinq']", "None"}
