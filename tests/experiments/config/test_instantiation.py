"""Only dataclasses of the expected kind are instantiated, whoever wrote the YAML."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from experiments.config.build import register
from experiments.config.instantiation import KINDS, instantiated
from experiments.runs.logger import NoLogger
from sinq import Layers
from tests.conftest import ROOT

PRINT, RTN = "builtins.print", "baselines.rtn.RTN"


@pytest.mark.parametrize(
    ("part", "node", "message"),
    [
        ("logger", {"_target_": PRINT}, "logger._target_=builtins.print is not possible; .* is a Logger$"),
        ("logger", {"_target_": "${name}"}, "logger._target_=builtins.print is not possible"),
        ("sweep", {"_target_": PRINT}, "it must name a dataclass that is a NoSearch or Search$"),
        (
            "method",
            {"_target_": "experiments.runs.logger.NoLogger"},
            "it must name a dataclass that is a Method$",
        ),
        ("method", {"_target_": "sinq.LayerMethod"}, "dataclass that is a Method$"),  # abstract
        ("method", {"_target_": RTN, "grid": {"_target_": PRINT}}, r"grid._target_=.* a dataclass$"),
        ("method", {"_target_": RTN, "grid": [{"_target_": PRINT}]}, r"grid\[0\]._target_=.*class$"),
        ("evaluation", {"size": {"_target_": RTN}}, "evaluation.size._target_=.* that is a Evaluation$"),
        ("logger", {"_target_": "nowhere.Logger"}, "nowhere.Logger cannot be imported: No module named"),
        (
            "logger",
            {"_target_": "experiments.track.weights_and_biases.Lager"},
            "cannot be imported: .* no attribute 'Lager'",
        ),
        ("logger", {"_target_": "print"}, "cannot be imported: Empty module name"),
    ],
)
def test_other_targets_are_refused_and_not_called(part: str, node: Any, message: str, capsys: Any) -> None:
    with pytest.raises(ValueError, match=message):
        instantiated(OmegaConf.create({part: node, "name": PRINT}), part)
    assert capsys.readouterr().out == ""


def test_known_parts_are_instantiated() -> None:
    targets = {"logger": "experiments.runs.logger.NoLogger", "layers": "sinq.model.targets.Layers"}
    config = OmegaConf.create({name: {"_target_": target} for name, target in targets.items()})
    assert (instantiated(config, "logger"), instantiated(config, "layers")) == (NoLogger(), Layers())


MODULE = """
from dataclasses import dataclass
from baselines.rtn import RTN

@dataclass(frozen=True)
class Halved(RTN):
    share: float = 0.5
"""
YAML = """
_target_: outside_method.Halved
grid: {_target_: sinq.formats.grid.Grid, bits: "${bits}"}
share: 0.25
"""


def test_a_method_from_elsewhere_is_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_method.py").write_text(MODULE)
    (tmp_path / "method").mkdir()
    (tmp_path / "method/halved.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(tmp_path)
    register()
    GlobalHydra.instance().clear()
    words = ["method=halved", "bits=3", f"hydra.searchpath=[{tmp_path}]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", words)
    method = instantiated(config, "method")
    assert (type(method).__name__, method.share, method.grid.bits) == ("Halved", 0.25, 3)


def test_every_group_of_parts_has_a_kind() -> None:
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert groups - {"tables", "experiment", "hydra"} | {"layers"} == KINDS.keys()
