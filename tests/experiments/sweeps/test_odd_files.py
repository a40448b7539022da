"""Files in a results folder that no run may replace: each costs its run, and the rest of a sweep goes on."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments.config.build import build, register
from experiments.results import record
from experiments.runs.identity import identity, run_id
from experiments.sweeps import plan
from experiments.sweeps.plan import State
from tests.conftest import ROOT


@pytest.mark.parametrize(("kind", "reason"), [("newer", "newer than the"), ("folder", "Is a directory")])
def test_a_row_that_cannot_be_replaced_costs_its_run_alone(
    kind: str, reason: str, tiny_folder: Path, tmp_path: Path
) -> None:
    register()
    options = ["model=hub", f"model.path={tiny_folder}", "text=sotu", "group_size=32", "evaluation=quality"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        configs = [
            compose("config", [*options, f"method={method}"], return_hydra_config=True)
            for method in ("rtn", "sinq")
        ]
    path = record.row_path(tmp_path, run_id(identity(build(configs[0]))))
    path.parent.mkdir(parents=True)
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text(json.dumps({"run_id": path.stem, "schema": record.SCHEMA + 1}))
    refused, to_do = plan.make(configs, tmp_path, ["rtn", "sinq"])
    assert (refused.state, to_do.state) == (State.refused, State.to_do)
    assert path.name in refused.reason
    assert reason in refused.reason
