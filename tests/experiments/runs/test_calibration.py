"""Calibration windows, and statistics kept in the cache."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.awq import AWQ
from baselines.gptq import GPTQ
from baselines.rtn import RTN
from experiments.common.tensor_folder import TensorFolder
from experiments.data.text import StateOfTheUnion
from experiments.models.source import LoadedModel
from experiments.runs.calibration import CalibrationText
from sinq import Calibration, Grid, Method
from sinq.model.linear import WeightStore
from tests.conftest import tiny_model, tiny_tokenizer, tiny_tokens

GRID = Grid(bits=2, group_size=32)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoadedModel:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    return LoadedModel(tiny_model("llama"), tiny_tokenizer(), torch.float32, identity={"name": "tiny"})


def weights(method: Method, calibration: Calibration) -> dict[str, torch.Tensor]:
    model = tiny_model("llama")
    method.compress(model, calibration)
    return {
        name: module.value.dequantize()
        for name, module in model.named_modules()
        if isinstance(module, WeightStore)
    }


def source(**options: Any) -> CalibrationText:
    return CalibrationText(StateOfTheUnion(calibrate_until=1790), samples=3, seqlen=16, **options)


def test_windows_depend_on_the_seed_alone(loaded: LoadedModel) -> None:
    first, again, other = (source(seed=seed).load(loaded).tokens for seed in (0, 0, 1))
    assert first.shape == (3, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match=r"calibration\.samples=0"):
        CalibrationText(StateOfTheUnion(), samples=0)


def test_statistics_of_the_dense_model_are_taken_once(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = source(sequential=False).load(loaded)
    first = weights(GPTQ(RTN(GRID)), calibration)
    monkeypatch.setattr(
        import_module("sinq.model.walk"), "enter", lambda *_: pytest.fail("the model ran again")
    )
    again = weights(GPTQ(RTN(GRID)), source(sequential=False).load(loaded))
    assert all(torch.equal(first[name], again[name]) for name in first)
    # other options, the same statistic
    weights(GPTQ(RTN(Grid(bits=4, group_size=32)), damping=0.1), calibration)


@pytest.mark.parametrize("change", ["text", "model", "statistic"])
def test_other_statistics_are_not_mistaken_for_these(loaded: LoadedModel, change: str) -> None:
    calibration = source(sequential=False).load(loaded)
    weights(GPTQ(RTN(GRID)), calibration)
    assert isinstance(calibration.store, TensorFolder)
    name = "model.layers.0.self_attn.q_proj"
    assert f"{name}.Hessian" in calibration.store
    if change == "text":
        assert f"{name}.Hessian" not in source(sequential=False, seed=1).load(loaded).store
    elif change == "model":
        other = LoadedModel(loaded.model, loaded.tokenizer, torch.float32, identity={"name": "other"})
        assert f"{name}.Hessian" not in source(sequential=False).load(other).store
    else:
        assert f"{name}.Inputs" not in calibration.store


def test_found_and_fresh_statistics_give_the_same_weights(loaded: LoadedModel) -> None:
    for method in (GPTQ(RTN(GRID)), AWQ(RTN(GRID))):
        kept = weights(method, source(sequential=False).load(loaded))
        found = weights(method, source(sequential=False).load(loaded))
        fresh = weights(method, Calibration(source().load(loaded).tokens, sequential=False))
        assert all(
            torch.equal(kept[name], found[name]) and torch.equal(kept[name], fresh[name]) for name in kept
        )


def test_sequential_statistics_are_others(loaded: LoadedModel) -> None:
    tokens = tiny_tokens(4)
    sequential, dense = (
        weights(GPTQ(RTN(GRID)), Calibration(tokens, sequential=order)) for order in (True, False)
    )
    assert torch.equal(
        sequential["model.layers.0.self_attn.q_proj.weight"], dense["model.layers.0.self_attn.q_proj.weight"]
    )
    assert not torch.equal(
        sequential["model.layers.1.self_attn.q_proj.weight"], dense["model.layers.1.self_attn.q_proj.weight"]
    )
    assert source(sequential=True).load(loaded).store is None
