"""Flat columns of the data frame, whatever holds the bits, and the Parquet file."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from baselines.aqlm import AQLM
from baselines.awq import AWQ
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.gwq import GWQ
from baselines.hadamard import Hadamard
from baselines.mgptq import MGPTQ
from baselines.mixed import Mixed
from baselines.rtn import RTN
from experiments.results import flat, frame, record
from experiments.results.record import Row
from experiments.track.content import configuration, tags
from sinq import SINQ, Grid, Tuned
from sinq.common.named import described
from sinq.formats.codebooks import Codebooks
from tests.experiments.rows import finished, store

G32 = Grid(3, 32)
METHODS: dict[str, tuple[Any, float | None, int | None]] = {
    "none": (Dense(), None, None),
    "rtn": (RTN(G32), 3, 32),
    "sinq": (SINQ(Grid(2, 128)), 2, 128),
    "awq": (AWQ(RTN(G32)), 3, 32),
    "awq around sinq": (AWQ(SINQ(G32)), 3, 32),
    "hadamard around gptq": (Hadamard(GPTQ(RTN(G32))), 3, 32),
    "gwq": (GWQ(G32), 3, 32),
    "mgptq": (MGPTQ(Grid(2, 64)), 2, 64),
    "mixed": (Mixed(SINQ()), None, None),
    "aqlm": (Tuned(AQLM()), 2, None),
    "aqlm of 3 codebooks": (AQLM(Codebooks(3, 4, 8)), 1.5, None),
}


def row(name: str, method: Any, model: str = "m", value: float = 10.0, calibrated: bool = False) -> Row:
    made = finished()
    made |= {"run_id": f"{name}-{model}".replace(" ", "-"), "name": name}
    made["choices"] = {"method": name, "model": "hub", "text": "wikitext2"}
    made["identity"] |= {"method": described(method), "model": {"name": model, "dtype": "float32"}}
    made["identity"] |= {"calibration": {"name": "text", "text": {"name": "c4"}}} if calibrated else {}
    made["options"] = {"method": described(method, defaults=True)}
    made["metrics"]["perplexity"]["value"] = value
    return made


@pytest.mark.parametrize("name", METHODS)
def test_bits_are_found_wherever_they_are(name: str) -> None:
    method, bits, group_size = METHODS[name]
    found = flat.facts(row(name, method, calibrated=name == "awq"))
    assert found == {
        "method": name, "bits": bits, "group_size": group_size, "calibrated": name == "awq", "model": "m",
        "text": "t", "activation_bits": None, "kv_bits": None,
    }  # fmt: skip


def test_methods_over_bits_are_a_pivot_table(tmp_path: Path) -> None:
    rows = [
        row(
            name,
            type(METHODS[name][0])(inner) if nested else METHODS[name][0],
            model=f"{name}{bits}",
            value=bits,
        )
        for bits in (2, 3, 4)
        for name, nested, inner in (
            ("awq", True, RTN(Grid(bits, 64))),
            ("hadamard around gptq", True, GPTQ(RTN(Grid(bits, 64)))),
        )
    ]
    rows += [row("sinq", SINQ(Grid(bits, 64)), model=f"s{bits}", value=bits + 0.5) for bits in (2, 3, 4)]
    store(tmp_path, *rows)
    pivot = record.load(tmp_path).pivot_table(index="method", columns="bits", values="perplexity")
    assert list(pivot.columns) == [2, 3, 4]
    assert list(pivot.loc["awq"]) == [2, 3, 4]
    assert list(pivot.loc["hadamard around gptq"]) == [2, 3, 4]
    assert list(pivot.loc["sinq"]) == [2.5, 3.5, 4.5]


def test_bits_of_activations_stand_beside_those_of_weights() -> None:
    inner = {"name": "sinq", "grid": {"bits": 4, "group_size": 64}}
    found = flat.facts(row("sinq", {"name": "activations", "inner": inner, "inputs": {"bits": 8}}))
    assert (found["bits"], found["group_size"], found["activation_bits"]) == (4, 64, 8)


def test_flat_columns_come_first_and_survive_the_file(tmp_path: Path) -> None:
    table = frame.tabulate([row(name, method) for name, (method, _, _) in METHODS.items()])
    assert list(table.columns[:11]) == [
        "run_id", "name", "status", "method", "bits", "group_size", "activation_bits", "kv_bits",
        "calibrated", "model", "text",
    ]  # fmt: skip
    assert {"perplexity", "kl", "flip_rate", "bits_per_weight", "model_nbytes"} <= set(table.columns)
    with (tmp_path / "rows.parquet").open("wb") as file:
        frame.write(table, file)
    back = pd.read_parquet(tmp_path / "rows.parquet")
    assert list(back["method"]) == list(METHODS)
    expected = [math.nan if bits is None else bits for _, bits, _ in METHODS.values()]
    assert back["bits"].astype("float64").to_list() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "values", [(1, "a"), ([1], ["a"]), (10**30, 1), ([[1]], [["a"]]), ({"a": []}, 3), (True, 2)]
)
def test_a_column_of_several_types_is_written_all_the_same(values: tuple[Any, Any], tmp_path: Path) -> None:
    rows = [finished(), finished("rtn")]
    for made, value in zip(rows, values, strict=True):
        made["options"]["method"]["odd"] = value
    with (tmp_path / "rows.parquet").open("wb") as file:
        frame.write(frame.tabulate(rows), file)
    assert len(pd.read_parquet(tmp_path / "rows.parquet")) == 2


def test_a_task_cannot_take_the_name_of_a_column() -> None:
    made = finished()
    made["metrics"]["zero_shot"] = {"tasks": {"method": {"acc": 0.5}, "status": {"acc": 0.25}}}
    table = frame.tabulate([made])
    assert (table.loc[0, "method"], table.loc[0, "status"]) == ("sinq", "finished")


def test_wandb_has_the_same_flat_facts() -> None:
    made = row("awq", AWQ(RTN(G32)), model="Qwen3-1.7B", calibrated=True)
    assert tags(made) == ["awq", "3-bit", "g32", "calibrated", "Qwen3-1.7B", "t"]
    assert tags(row("none", Dense())) == ["none", "m", "t"]
    assert configuration(made).items() >= flat.facts(made).items()
    assert configuration(made)["identity"] == made["identity"]
