"""SEA: its losses against their formulas, what a training changes and reaches, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from baselines.sea import SEA
from baselines.sea.lessons import kept_share, lessons, log_attention
from baselines.sea.losses import Losses, alike, divergence, hidden_distance
from baselines.sea.maps import binned
from baselines.sea.method import Form
from baselines.sea.training import Student, is_new, trained_parameters
from sinq import Calibration, Context, NotApplicable, load, save
from sinq.common.tensor_store import TensorStore
from sinq.model.attention_forms.form import attention_forms, query_shapes
from sinq.model.sharing import sparing_clone
from sinq.training import trainer
from sinq.training.trainer import Training
from tests.conftest import SHARED, needs_data, tiny_tokens
from tests.sinq.sliceable import random_model

TEXT = Calibration(tiny_tokens(8, 24))
SHORT = Training(steps=3, batch=2, at_once=1, learning_rate=1e-3)


def quick(**options: Any) -> SEA:
    """The method at sizes of a tiny model."""
    sizes = {"keys": 4, "blocks": 8, "tokens": 32, "fraction": 4.0, "training": SHORT}
    return SEA(**(sizes | options))


def log_softmax(*shape: int, seed: int = 0) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def test_losses_are_their_formulas() -> None:
    p, q = log_softmax(2, 5, 7), log_softmax(2, 5, 7, seed=1)
    rows = [(x.double().exp(), y.double().exp()) for x, y in zip(p.view(10, 7), q.view(10, 7), strict=True)]
    kl = sum(float((a * (a / b).log()).sum()) for a, b in rows) / 10
    mse = sum(float((a - b).square().sum()) for a, b in rows) / 70
    assert divergence(p, q).item() == pytest.approx(kl, rel=1e-5)
    assert alike(p, q, 0.25).item() == pytest.approx(0.25 * kl + mse, rel=1e-5)
    assert alike(p, p, 1.0).item() == pytest.approx(0, abs=1e-6)
    states = [torch.randn(1, 3, 4) for _ in range(4)]
    wanted = ((states[0] - states[2]).square().mean() + (states[1] - states[3]).square().mean()) / 2
    torch.testing.assert_close(hidden_distance(states[:2], states[2:]), wanted)


def test_attention_and_what_of_it_is_kept() -> None:
    query, key = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 4)
    found = log_attention(query, key, 0.5)
    for t in (0, 4, 8):
        expected = (query[:, :, t : t + 1] @ key[:, :, : t + 1].mT * 0.5).softmax(-1)[:, :, 0]
        torch.testing.assert_close(found[:, :, t, : t + 1].exp(), expected)
        assert not found[:, :, t, t + 1 :].exp().any()
    assert kept_share(found, torch.ones(9, 9, dtype=torch.bool), 3).item() == pytest.approx(1)
    diagonal = found.exp().diagonal(dim1=-2, dim2=-1)
    assert kept_share(found, torch.eye(9).bool(), 3).item() == pytest.approx(diagonal[..., 3:].mean().item())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "opt"])
def test_a_training_lowers_the_loss(kind: str) -> None:
    options = Training(steps=12, batch=4, at_once=4, learning_rate=1e-3)
    report = quick(training=options, gate_bias=2.0, base_share=0.0).compress(random_model(kind), TEXT)
    assert report.training is not None
    assert report.training.losses[-1] < 0.9 * report.training.losses[0]


@needs_data
def test_estimates_find_more_and_more_of_the_true_attention() -> None:
    folder = SHARED / "data/models/stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = torch.randint(3, 500, (1, 96), generator=torch.Generator().manual_seed(0))
    options = Training(steps=25, batch=1, learning_rate=1e-3)
    method = SEA(keys=8, blocks=16, tokens=96, gate_bias=4.0, base_share=0.0, training=options)
    log = method.compress(model, Calibration(text)).training
    assert log is not None
    recall = log.measures["recall"]
    assert recall[-1] > recall[0] + 0.1
    chance = sum(8 / seen for seen in range(9, 97)) / 88
    assert recall[-1] > 1.3 * chance


def gradients(method: SEA, weights: Losses, kind: str = "llama") -> dict[str, Tensor]:
    """The gradients of a student's parameters at the start, for weights of the losses."""
    model: Any = random_model(kind)
    teacher = sparing_clone(model)
    method._replace(model, query_shapes(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)  # else what agrees with the teacher has no gradient
    parameters = trained_parameters(model, base=True)
    with lessons(model, teacher, weights.divergence, method.keys) as attentions, torch.enable_grad():
        Student(teacher, model, attentions, weights, 0.0, 10, 0).loss(TEXT.tokens[:2]).backward()
    return {name: p.grad for name, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}


def test_gradients_reach_every_parameter() -> None:
    model = random_model("llama")
    found = gradients(quick(), Losses())
    assert {name for name in found if not is_new(name)} == {name for name, _ in model.named_parameters()}
    new = {name.rpartition("estimator.")[2] for name in found if is_new(name)}
    layers = (
        "encoder",
        "encoder_norm",
        "rows",
        "rows_norm",
        "first",
        "second",
        "head_mix",
        "blocks_norm",
        "gates",
    )
    wanted = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert new == wanted | {"positions"}


def test_each_form_trains_the_model_beside_the_same_teacher() -> None:
    for form in Form:
        model, before = random_model("llama"), random_model("llama")
        teacher = {name: tensor.clone() for name, tensor in before.state_dict().items()}
        original = copy.copy(dict(model.named_parameters()))
        report = quick(form=form).compress(model, TEXT)
        assert report.training is not None
        assert len(report.training.losses) == 3
        assert ("recall" in report.training.measures) == (form in (Form.estimated, Form.local, Form.highest))
        assert len(report.parts) == (0 if form is Form.dense else 2)
        for name, parameter in original.items():  # a dense model may share them
            assert torch.equal(parameter, teacher[name])
        moved = [n for n, p in model.named_parameters() if n in teacher and not torch.equal(p, teacher[n])]
        assert len(moved) == len(teacher) - ("lm_head.weight" in teacher and model.config.tie_word_embeddings)
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_base_stays_and_a_form_without_parameters_is_not_trained() -> None:
    model, dense = random_model("llama"), random_model("llama")
    quick(base_share=0.0).compress(model, TEXT)
    for name, parameter in dense.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    report = quick(form=Form.local, base_share=0.0).compress(random_model("llama"), TEXT)
    assert report.training is None
    assert len(report.parts) == 2


def test_ties_and_number_formats_stay() -> None:
    model = random_model("qwen3").to(torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    method = quick(training=Training(steps=1, batch=1, precision=trainer.Precision.bfloat16))
    method.compress(model, TEXT)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    kinds = {is_new(name): parameter.dtype for name, parameter in model.named_parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32}
    assert model(TEXT.tokens[:1]).logits.dtype is torch.bfloat16


def test_checkpoints_change_nothing() -> None:
    sums = []
    for checkpoints in (False, True):
        model = random_model("llama")
        options = Training(steps=2, batch=2, learning_rate=1e-2, gradient_checkpointing=checkpoints)
        quick(training=options, jitter=1.0).compress(model, TEXT)
        sums.append({name: parameter.clone() for name, parameter in model.named_parameters()})
    for name, parameter in sums[0].items():
        torch.testing.assert_close(sums[1][name], parameter, rtol=0, atol=1e-6)


def test_a_killed_training_goes_on_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    whole, stopped, method = random_model("llama"), random_model("llama"), quick(redraw=2, jitter=0.5)
    method.compress(whole, TEXT)

    class KilledError(Exception):
        pass

    def killing(items: Any, words: Any, count: int) -> Any:
        for index, item in enumerate(items):
            if index == 2:
                raise KilledError
            yield item

    store: dict[str, dict[str, Tensor]] = {}
    with pytest.raises(KilledError):
        method.compress(stopped, TEXT, Context(states=as_store(store), progress=killing))
    resumed = random_model("llama")
    report = method.compress(resumed, TEXT, Context(states=as_store(store)))
    assert report.training is not None
    assert len(report.training.losses) == len(report.training.measures["recall"]) == 3
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def as_store(content: dict[str, dict[str, Tensor]]) -> TensorStore:
    return content  # type: ignore[return-value]


def test_maps_are_shares_of_attention_in_groups() -> None:
    attention = torch.rand(10, 10).tril()
    attention /= attention.sum(-1, keepdim=True)
    cells = binned(attention, 3)
    assert cells.shape == (3, 3)
    torch.testing.assert_close(cells.sum(-1), torch.ones(3))
    torch.testing.assert_close(cells[1, 0], attention[4:7, :4].sum(-1).mean())
    kept = quick().compress(random_model("llama"), TEXT).samples["attention_maps"]
    assert kept["layers"] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    for kind in ("true", "estimated"):
        assert [len(each) for each in kept[kind]] == [24, 24]
        assert all(sum(row) == pytest.approx(1, abs=2e-3) for each in kept[kind] for row in each)
    assert kept["true"] != kept["estimated"]
    assert not quick(form=Form.local).compress(random_model("llama"), TEXT).samples


def test_no_key_is_moved_after_a_training() -> None:
    model = random_model("llama")
    quick(jitter=1.0).compress(model, TEXT)
    with torch.enable_grad():
        dense = model(TEXT.tokens).logits.detach()
    with torch.no_grad():
        torch.testing.assert_close(model(TEXT.tokens).logits, dense, rtol=0, atol=2e-5)


def test_random_features_are_drawn_anew() -> None:
    drawn = []
    for redraw in (2, 1000):
        model = random_model("llama")
        quick(redraw=redraw).compress(model, TEXT)
        drawn.append([form.estimator.omega for form in attention_forms(model).values()])  # type: ignore[union-attr]
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[1][0], drawn[1][1])


def test_a_trained_model_is_stored_and_loaded(tmp_path: Path) -> None:
    model = random_model("opt")
    quick().compress(model, TEXT)
    save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(TEXT.tokens).logits, model(TEXT.tokens).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": 0}, r"method\.keys=0"),
        ({"blocks": 10}, r"method\.blocks=10 is not possible; it must be a multiple of 4"),
        ({"fraction": 0.0}, r"method\.fraction=0"),
        ({"jitter": 1.5}, r"method\.jitter=1.5"),
        ({"form": Form.dense, "base_share": 0.0}, "nothing to train; it is the dense model"),
        ({"losses": {"hidden": 1}}, "losses"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        quick(**options)


def test_a_negative_weight_of_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"losses\.hidden=-1"):
        Losses(hidden=-1.0)


def test_texts_that_do_not_fit_are_refused_before_the_model_changes() -> None:
    model = random_model("llama")
    with pytest.raises(NotApplicable, match=r"windows of 24 tokens are longer than method\.tokens=16"):
        quick(tokens=16).compress(model, TEXT)
    with pytest.raises(NotApplicable, match="SEA trains on text"):
        quick().compress(model)
    with pytest.raises(ValueError, match="too few to train in batches of 9"):
        quick(training=Training(batch=9)).compress(model, TEXT)
    assert not attention_forms(model)
