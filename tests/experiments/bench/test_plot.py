"""The picture of the bench: the table's ratios on one axis, and no colour in the legend that no bar has."""

import io
import json
from typing import Any

import pytest

from experiments.bench import listing, plot


def result(name: str, median: float, peer: bool = False) -> dict[str, Any]:
    return {
        "name": name, "kernel": "cpu", "is_peer": peer, "nbytes": 10, "first_seconds": 1.0,
        "median": median, "quartiles": [0.9 * median, 1.2 * median], "ratio": median / 2e-3,
        "peer": None, "peer_ratio": None, "floor_seconds": 1e-4, "floor_ratio": median / 1e-4,
        "tokens_per_second": None, "bit_operations": None,
    }  # fmt: skip


def case(suite: str, name: str, *others: dict[str, Any]) -> dict[str, Any]:
    return {
        "suite": suite, "name": name, "baseline": "fp32", "bytes_per_second": 1e9, "absent": [],
        "results": [result("fp32", 2e-3, peer=True), *others],
    }  # fmt: skip


CASES = [
    case("linear", "64×64", result("SINQ", 1e-3), result("torch int4", 7e-3, peer=True)),
    case("linear", "32×32", result("SINQ", 4e-3)),
    case("quantize", "64×64", result("RTN", 5e-4)),
]


def found(value: Any, key: str) -> list[Any]:
    """All values of a key, anywhere in a specification."""
    if isinstance(value, list):
        return [each for item in value for each in found(item, key)]
    if not isinstance(value, dict):
        return []
    here = [value[key]] if key in value else []
    return here + [each for item in value.values() for each in found(item, key)]


def test_numbers_are_the_tables_ratios_to_the_baseline() -> None:
    rows = plot.figure(CASES).rows
    assert [row["ratio"] for row in rows] == pytest.approx([1, 0.5, 3.5, 1, 2, 1, 0.25])
    assert [row["words"] for row in rows][1:3] == ["0.500× (1.00 ms)", "3.50× (7.00 ms)"]
    assert (rows[1]["low"], rows[1]["high"], rows[1]["floor"]) == pytest.approx((0.45, 0.6, 0.05))
    cells = [line for each in CASES for line in listing.rows(each)]
    column = listing._columns(CASES[0]).index("× baseline")
    assert [row["words"].partition("×")[0] for row in rows] == [line[column] for line in cells]


def test_suites_are_groups_on_one_axis() -> None:
    spec = plot.figure(CASES).spec
    assert [panel["title"]["text"] for panel in spec["vconcat"]] == ["linear", "quantize"]
    domains = {json.dumps(domain) for domain in found(spec, "domain") if isinstance(domain, list)}
    numbers = [json.loads(domain) for domain in domains if "project" not in domain]
    assert numbers == [pytest.approx([0.05 / plot.ROOM, 4.2 * plot.ROOM])]
    titles = [title for title in found(spec, "title") if isinstance(title, str)]
    assert len({title for title in titles if "baseline" in title}) == 1
    assert not any("baseline" in str(title) for title in found(spec["vconcat"][0], "title"))


@pytest.mark.parametrize(
    ("cases", "kinds"), [(CASES, {"this project", "others"}), (CASES[1:], {"this project"})]
)
def test_the_legend_has_the_colours_of_bars_that_are_there(
    cases: list[dict[str, Any]], kinds: set[str]
) -> None:
    legends = [set(legend["values"]) for legend in found(plot.figure(cases).spec, "legend") if legend]
    assert legends
    assert all(legend == kinds for legend in legends)


def test_a_picture_is_drawn_and_the_same_twice() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        plot.draw(CASES, file)
    assert files[0].getvalue().startswith(b"\x89PNG")
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize(
    ("ends", "expected"), [((0.3, 4), [0.5, 1, 2]), ((0.002, 150), [0.01, 0.1, 1, 10, 100])]
)
def test_labels_of_a_short_axis_are_closer(ends: tuple[float, float], expected: list[float]) -> None:
    assert plot._values(*ends) == pytest.approx(expected)
