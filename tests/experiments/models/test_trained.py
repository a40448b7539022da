"""Models trained here: made once by their recipe, resumable, and loadable at every checkpoint."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.data.text import StateOfTheUnion, tokenize, windows
from experiments.evaluation import EvaluationContext, Scaling
from experiments.models import trained
from experiments.models.architectures import Transformer
from experiments.models.learned_tokenizer import Tokens
from experiments.models.source import load
from experiments.models.trained import Trained, TrainingDevice
from sinq import CompressionReport
from sinq.calibration.gradients import next_token_loss
from sinq.common.progress import silent
from sinq.training.trainer import Training

CPU = torch.device("cpu")
SOURCE = Trained(
    architecture=Transformer(layers=1, width=32, heads=2, neurons=48),
    text=StateOfTheUnion(calibrate_until=1790),
    vocabulary=300,
    seqlen=32,
    training=Training(steps=12, batch=4, at_once=4, learning_rate=1e-2),
    checkpoint_every=5,
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    load.cache_clear()


def test_checkpoints_are_those_of_a_plain_loop() -> None:
    """An AdamW of torch over the same windows has the same weights at each checkpoint."""
    loaded = load(replace(SOURCE, step=0), CPU)
    tokens = tokenize(SOURCE.text.calibration(), loaded.tokenizer, loaded.tokenizer_hash)
    batches = trained.Windows(windows(tokens, 32), 4, 4, 0)
    model = loaded.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(12):
        if step in (0, 5, 10):
            _same(model, load(replace(SOURCE, step=step), CPU).model)
        optimizer.zero_grad()
        next_token_loss(model, batches(step)[0]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = SOURCE.training.rate(step)
        optimizer.step()
    _same(model, load(SOURCE, CPU).model)


def test_it_says_if_it_is_made_without_making_it() -> None:
    assert not SOURCE.is_made
    assert not replace(SOURCE, step=5).is_made
    load(replace(SOURCE, step=5), CPU)
    assert SOURCE.is_made
    assert not replace(SOURCE, seqlen=16).is_made


def _same(model: Any, other: Any) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, other.state_dict()[name], atol=1e-5), name


def test_a_trajectory_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SOURCE.trajectory()
    monkeypatch.setattr(Trained, "_make", lambda *_: pytest.fail("it is made again"))
    assert {replace(SOURCE, step=step).trajectory() for step in (0, 5, 10, 12, None)} == {folder}
    assert sorted(each.name for each in folder.iterdir()) == ["0", "10", "12", "5", "training.csv"]
    with (folder / "training.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.3
    assert not list((tmp_path / "training").rglob("*.safetensors"))


def test_a_training_that_was_killed_goes_on_to_the_same_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = [replace(SOURCE, step=step).identity()["fingerprint"] for step in SOURCE.checkpoints]
    assert len(set(fingerprints)) == 4
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("sinq.training.trainer.SAVE_SECONDS", 0.0)

    def killed(self: Transformer, model: Any, ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) == 8:
            raise KeyboardInterrupt
        return next_token_loss(model, ids)

    calls: list[int] = []
    monkeypatch.setattr(Transformer, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        SOURCE.trajectory()
    assert [replace(SOURCE, step=s).identity()["fingerprint"] for s in SOURCE.checkpoints] == fingerprints
    assert len(calls) == 8 + 12 - 7  # seven steps were kept


def test_the_row_says_what_the_model_is() -> None:
    asked = replace(SOURCE, step=5).asked()
    assert json.loads(json.dumps(asked)) == asked
    assert asked["name"] == "decoder1 step 5"
    assert SOURCE.asked()["name"] == "decoder1"
    assert str(asked["text"]).startswith("sotu calibration ")
    recipe = json.loads(str(asked["recipe"]))
    assert recipe["architecture"]["width"] == 32
    assert recipe["training"]["learning_rate"] == 1e-2
    assert recipe["text"]["part"] == "calibration"


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": Transformer(layers=2, width=32, heads=2, neurons=48)},
        {"text": StateOfTheUnion(calibrate_until=1791)},
        {"vocabulary": 301},
        {"tokens": Tokens.words},
        {"seqlen": 31},
        {"training": Training(steps=12, batch=4, at_once=4, learning_rate=1e-2, seed=1)},
    ],
)
def test_what_decides_the_weights_is_in_the_recipe(change: dict[str, Any]) -> None:
    assert replace(SOURCE, **change).recipe() != SOURCE.recipe()
    assert replace(SOURCE, step=5).recipe() == SOURCE.recipe()


def test_a_step_without_a_checkpoint_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError,
        match=r"model\.step=6 is not possible: the training keeps the steps 0, 5, 10, 12; choose one",
    ):
        replace(SOURCE, step=6)


def test_training_on_a_device_that_is_not_there_is_refused_before_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(trained, "learned_tokenizer", lambda *_: pytest.fail("work has begun"))
    source = replace(SOURCE, train_on=TrainingDevice.cuda)
    assert source.recipe() != SOURCE.recipe()
    with pytest.raises(ValueError, match=r"model\.train_on=cuda is not possible: this machine has no CUDA"):
        source.trajectory()


def test_a_vocabulary_that_the_text_does_not_give_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.vocabulary=60000 is not possible: sotu.* gives \d+ tokens"):
        replace(SOURCE, vocabulary=60000).trajectory()


def test_models_of_words_are_not_set_beside_models_of_byte_pairs() -> None:
    """The row says which they are, and the tokenizers, which a comparison demands to be the same, differ."""
    words = replace(SOURCE, tokens=Tokens.words)
    assert (SOURCE.asked()["tokenizer"], words.asked()["tokenizer"]) == (
        "byte pairs, 300, of the text",
        "words, 300, of the text",
    )
    assert "tokens" not in json.loads(SOURCE.recipe())  # models of before are not trained again
    assert load(words, CPU).tokenizer_hash != load(SOURCE, CPU).tokenizer_hash


def test_a_tokenizer_of_another_text_is_refused_where_it_does_not_fit() -> None:
    """A vocabulary larger than the model's embedding, as a folder put together by hand may have."""
    loaded = load(SOURCE, CPU)
    with pytest.raises(ValueError, match=r"token 300, but the model's embedding has 300 tokens \(decoder1\)"):
        loaded.refuse_unknown(torch.tensor([5, 300]))


def test_a_text_beyond_the_longest_input_is_read_in_windows_and_measured_lengths_are_refused() -> None:
    context = EvaluationContext(
        load(SOURCE, CPU).model, load(SOURCE, CPU), torch.zeros(200, dtype=torch.long),
        CompressionReport(), CPU, silent,
    )  # fmt: skip
    assert context.windows("evaluation.perplexity", 2048, None).shape == (6, 32)
    with pytest.raises(ValueError, match=r"lengths=\[16, 32, 64\] do not fit the model's context of\s+32"):
        Scaling(lengths=(16, 32, 64)).check(context)


def test_a_vocabulary_without_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.vocabulary=100 is not possible; it must be .* from 257"):
        replace(SOURCE, vocabulary=100)
