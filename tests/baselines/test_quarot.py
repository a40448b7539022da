"""All rotations of QuaRot: the function stays, codes and statistics are of what is rotated, and refusals."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

import sinq
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.hadamard import Hadamard, ResidualHadamard
from baselines.rtn import RTN
from sinq import (
    SINQ,
    ActivationFormat,
    Activations,
    Calibration,
    Context,
    Grid,
    Layers,
    Method,
    NotApplicable,
    OnMisfit,
    Rotated,
    Rotation,
    Tuned,
    stored_tensors,
)
from sinq.formats.activations import Per
from sinq.model.edits import weight_stores
from sinq.model.rounded_inputs import quantizers
from tests.conftest import tiny_model, tiny_tokens
from tests.sinq.decoders import DECODERS, GROUPED, Keep, Recording, random_decoder

GRID = Grid(4, 16)
TEXT = Calibration(tiny_tokens())
STATIC = ActivationFormat(8, Per.tensor, static=True)
WITHOUT_EXPERTS = [name for name in DECODERS if "moe" not in name]


def quarot(inner: Any, **others: Any) -> ResidualHadamard:
    return ResidualHadamard(inner, **({"values": True, "down": True, "output": True} | others))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def layer(model: nn.Module, name: str) -> Any:
    return model.get_submodule(f"model.layers.1.{name}")


def inputs_of(model: nn.Module, *names: str) -> list[Tensor]:
    """The first argument of modules of the last block while the model runs."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, arguments: seen.update({name: arguments[0].clone()})

    hooks = [layer(model, name).register_forward_pre_hook(note(name)) for name in names]
    model(tiny_tokens())
    for hook in hooks:
        hook.remove()
    return [seen[name] for name in names]


@pytest.mark.parametrize("options", [{}, {"down": False}, {"output": False}, {"values": False}], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_the_function_stays(name: str, options: dict[str, bool]) -> None:
    model = random_decoder(name)
    before = model(tiny_tokens()).logits
    report = quarot(Keep(), seed=3, **options).compress(model)
    assert relative(model(tiny_tokens()).logits, before) < 1e-5
    kinds = [type(store.value) for store in weight_stores(model)]
    assert 0 < kinds.count(Rotated) < len(kinds)
    assert all(part.relative_error < 1e-5 for part in report.parts)


@pytest.mark.parametrize("name", WITHOUT_EXPERTS)
def test_the_function_stays_when_inputs_are_rotated_at_run_time(name: str) -> None:
    model = random_decoder(name)
    before = model(tiny_tokens()).logits
    Activations(quarot(Keep()), ActivationFormat(8)).compress(model)
    for quantizer in quantizers(model).values():
        quantizer.rounds = False
    assert relative(model(tiny_tokens()).logits, before) < 1e-3


@pytest.mark.parametrize("name", ["llama-biases", "qwen3-tied", "moe"])
def test_values_are_rotated_within_each_head(name: str) -> None:
    model = random_decoder(name)
    (before,) = inputs_of(model, "self_attn.o_proj")
    ResidualHadamard(Keep(), seed=2, values=True).rewrite(model, None, Context())
    (after,) = inputs_of(model, "self_attn.o_proj")
    width = layer(model, "self_attn").head_dim
    matrix = Rotation.random(width, seed=2).matrix()
    expected = (before.unflatten(-1, (-1, width)) @ matrix.T).flatten(-2)
    assert relative(after, expected) < 1e-5
    assert relative(after, before) > 0.1


def test_activations_of_down_and_o_are_rounded_rotated() -> None:
    model = random_decoder("llama-biases")
    before = inputs_of(model, "mlp.down_proj", "self_attn.q_proj")
    Activations(quarot(Keep(), seed=2), ActivationFormat(8)).compress(model)
    for quantizer in quantizers(model).values():
        quantizer.rounds = False
    assert type(layer(model, "mlp.down_proj").weight.value) is Rotated
    seen = inputs_of(model, "mlp.down_proj.inputs", "self_attn.q_proj.inputs", "self_attn.o_proj.inputs")
    assert relative(seen[0], before[0] @ Rotation.random(128, seed=2).matrix().T) < 1e-3
    (given,) = inputs_of(model, "self_attn.o_proj")
    assert relative(seen[2], given @ Rotation.random(64, seed=2).matrix().T) < 1e-3
    (normed,) = inputs_of(model, "self_attn.q_proj")
    assert torch.equal(seen[1], normed)  # it is rotated already, in the residual stream


def test_the_hessian_of_down_is_of_rotated_inputs_and_others_are_of_theirs() -> None:
    model, seen = random_decoder("llama"), []
    dense = copy.deepcopy(model)
    inputs = inputs_of(dense, "mlp.down_proj", "mlp.gate_proj")
    calibration = Calibration(tiny_tokens(), sequential=False)
    Hadamard(Recording(seen=seen), seed=1, only=("layers.1.mlp.down_proj",)).compress(model, calibration)
    matrices = {
        "down": layer(dense, "mlp.down_proj").weight @ Rotation.random(128, seed=1).matrix().T,
        "gate": layer(dense, "mlp.gate_proj").weight,
    }
    given = [each for each in seen if not isinstance(each, int)]
    found = {
        part: next(
            hessian
            for weight, hessian in given
            if weight.shape == matrix.shape and torch.allclose(weight, matrix, atol=1e-5)
        )
        for part, matrix in matrices.items()
    }
    rotated = (inputs[0] @ Rotation.random(128, seed=1).matrix().T).flatten(0, 1)
    plain = inputs[1].flatten(0, 1)
    assert relative(found["down"].float(), rotated.T @ rotated / len(rotated)) < 1e-4
    assert relative(found["gate"].float(), plain.T @ plain / len(plain)) < 1e-4


def test_layers_that_share_inputs_are_compressed_each_by_its_method() -> None:
    models = [random_decoder("llama") for _ in range(3)]
    inner = GPTQ(RTN(GRID))
    for model, method in zip(
        models, (Hadamard(inner, only=("gate_proj",)), Hadamard(inner), inner), strict=True
    ):
        method.compress(model, Calibration(tiny_tokens(), sequential=False))
    some, every, none = (
        [layer(model, f"mlp.{name}").weight.value.dequantize() for name in ("gate_proj", "up_proj")]
        for model in models
    )
    torch.testing.assert_close(some[0], every[0])
    torch.testing.assert_close(some[1], none[1])
    assert relative(some[0], none[0]) > 0.01


@pytest.mark.parametrize(
    "method",
    [
        quarot(RTN(GRID)),
        quarot(GPTQ(RTN(GRID)), output=False),
        Activations(quarot(SINQ(GRID)), ActivationFormat(4)),
        Activations(quarot(RTN(GRID)), STATIC),
        ResidualHadamard(Hadamard(RTN(GRID), only=("down_proj",)), values=True),
    ],
    ids=["rtn", "gptq", "sinq A4", "static", "by hand"],
)
@pytest.mark.parametrize("name", ["llama-biases", "qwen3-tied", "mistral", "qwen2", "moe"])
def test_a_reloaded_model_is_bit_for_bit_the_saved_one(name: str, method: Method, tmp_path: Path) -> None:
    model, tokens = random_decoder(name), tiny_tokens()
    if name == "moe" and method.needs_calibration and not isinstance(method, Activations):
        with pytest.raises(NotApplicable, match=r"experts.* do not show.* layers\.exclude"):
            method.compress(model, TEXT)
        assert isinstance(layer(model, "self_attn.q_proj"), nn.Linear)
        return
    method.compress(model, TEXT)
    sinq.save(model, tmp_path)
    again = sinq.load(tmp_path)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    saved, loaded = stored_tensors(model), stored_tensors(again)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)


def test_by_hand_is_the_option() -> None:
    models = [random_decoder("llama") for _ in range(2)]
    quarot(RTN(GRID), output=False, seed=1).compress(models[0])
    ResidualHadamard(Hadamard(RTN(GRID), 1, ("down_proj",)), 1, values=True).compress(models[1])
    assert torch.equal(models[0](tiny_tokens()).logits, models[1](tiny_tokens()).logits)


@pytest.mark.parametrize("format", [ActivationFormat(4), STATIC], ids=["dynamic", "static"])
def test_outliers_of_downs_inputs_cost_less_when_rotated(format: ActivationFormat) -> None:
    errors = []
    for options in ({"down": False}, {}):
        model = random_decoder("llama")
        for block in model.model.layers:
            block.mlp.up_proj.weight[::40] *= 30
            block.mlp.down_proj.weight[:, ::40] /= 30
        before = model(tiny_tokens()).logits
        Activations(quarot(RTN(Grid(8, 16)), **options), format).compress(model, TEXT)
        errors.append(relative(model(tiny_tokens()).logits, before))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_layer_norm_is_refused_and_the_error_says_what_is_missing(name: str) -> None:
    model = tiny_model(name)
    with pytest.raises(NotApplicable, match=r"LayerNorm subtracts the mean, .* a bias\. What is missing"):
        quarot(RTN(GRID)).compress(model)


def unrotatable(name: str) -> Any:
    """A model with 116 inputs of down, or heads of width 92, and tensors that show if it was rewritten."""
    sizes = {"down": {**GROUPED, "intermediate_size": 116}, "heads": {**GROUPED, "head_dim": 92}}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes[name])).eval()


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        (
            "down",
            quarot(RTN(Grid(4, 4))),
            "for the inputs of 2 layers: 2 like .*down_proj .* have 116 inputs",
        ),
        ("down", quarot(RTN(GRID), down=False), "group_size=16 does not divide .* 2 like .*down_proj"),
        ("heads", quarot(RTN(Grid(4, 4))), "for 92 inputs"),
    ],
)
def test_sizes_are_refused_before_anything_is_rotated(name: str, method: Method, message: str) -> None:
    model = unrotatable(name)
    embedding = model.model.embed_tokens.weight
    with pytest.raises((NotApplicable, ValueError), match=message):
        method.compress(model)
    assert model.model.embed_tokens.weight is embedding


def test_what_cannot_be_rotated_may_stay_dense() -> None:
    model = unrotatable("down").requires_grad_(False)
    before = model(tiny_tokens()).logits
    report = quarot(RTN(Grid(8, 4))).compress(model, context=Context(Layers(on_misfit=OnMisfit.skip)))
    assert report.skipped == tuple(f"model.layers.{k}.mlp.down_proj" for k in (0, 1))
    assert relative(model(tiny_tokens()).logits, before) < 0.05


@pytest.mark.parametrize(
    ("layers", "only"), [(Layers(exclude=("lm_head", "down_proj")), "down_proj"), (Layers(), "dwon_proj")]
)
def test_a_pattern_for_no_layer_is_refused(layers: Layers, only: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(NotApplicable, match=rf"inputs of '{only}' cannot be rotated: no layer of this name"):
        Hadamard(RTN(GRID), only=(only,)).compress(model, context=Context(layers))
    assert isinstance(layer(model, "self_attn.q_proj"), nn.Linear)


def test_rotations_at_run_time_need_a_method_of_layers() -> None:
    tuned = ResidualHadamard(Tuned(RTN(GRID)), down=True)
    assert tuned.compressor == Tuned(Hadamard(RTN(GRID), only=("down_proj",)))
    assert ResidualHadamard(Dense(), values=True).inner == Dense()
    with pytest.raises(NotApplicable, match="inner=Dense does not work that way"):
        ResidualHadamard(Dense(), down=True)


def test_a_layer_is_chosen_through_wrappers() -> None:
    plain, method = (
        RTN(GRID),
        Hadamard(Hadamard(RTN(GRID), seed=1, only=("down_proj",)), only=("o_proj", "down_proj")),
    )
    assert method.for_layer("model.layers.0.mlp.gate_proj") == plain
    assert method.for_layer("a.down_proj").inner == method.inner  # type: ignore[attr-defined]
    assert method.for_layer("a.o_proj").inner == plain  # type: ignore[attr-defined]
