from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinq
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.hadamard import Hadamard, ResidualHadamard
from baselines.rtn import RTN
from sinq import (
    SINQ,
    BlockTuning,
    Calibration,
    Context,
    Grid,
    LayerMethod,
    Layers,
    NotApplicable,
    OnMisfit,
    PreSINQ,
    Tuned,
    stored_tensors,
)
from sinq.calibration.statistics import Hessian
from sinq.formats.rotation import Rotation
from tests.conftest import tiny_model, tiny_tokens
from tests.sinq.decoders import DECODERS, Keep, Recording, random_decoder


def test_every_architecture_keeps_its_function_when_nothing_is_rounded(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    before = model(tokens).logits
    report = Hadamard(Keep()).compress(model)
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-4)
    # not zero: it was rotated and rotated back
    assert all(0 < layer.relative_error < 1e-5 for layer in report.parts)


def test_the_inner_method_sees_the_rotated_matrix(weight: Tensor) -> None:
    rotated = Hadamard(SINQ(Grid(3, 32)), seed=5).quantize(weight)
    matrix = Rotation.random(128, seed=5).matrix()
    expected = SINQ(Grid(3, 32)).quantize(weight @ matrix.T).dequantize() @ matrix
    assert (rotated.dequantize() - expected).norm() < 0.01 * weight.norm()  # codes at a tie aside


def test_outliers_cost_less_when_rotated() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=generator)
    weight[torch.rand(64, 256, generator=generator) < 0.01] *= 10

    def error(method: LayerMethod) -> float:
        return ((method.quantize(weight, None).dequantize() - weight).norm() / weight.norm()).item()

    assert error(Hadamard(RTN(Grid(3)))) < 0.75 * error(RTN(Grid(3)))


def test_matrices_that_share_inputs_share_the_rotation_of_inputs_and_statistic(weight: Tensor) -> None:
    inputs = torch.randn(50, 128, generator=torch.Generator().manual_seed(1))
    statistic = Hessian(128, torch.device("cpu"))
    statistic.update(inputs)
    method = Hadamard(Recording(seen=[]))
    assert method.statistic is Hessian
    assert method.needs_calibration
    values = method.quantize_together([weight, 2 * weight[:32]], statistic)
    single = method.quantize(weight, statistic)
    together, *calls = method.inner.seen  # type: ignore[attr-defined]
    assert (together, len(calls)) == (2, 3)
    matrix = Rotation.random(128, seed=0).matrix()
    for (given, hessian), original in zip(calls, [weight, 2 * weight[:32], weight], strict=True):
        torch.testing.assert_close(given, original @ matrix.T, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            hessian.float(), (inputs @ matrix.T).T @ (inputs @ matrix.T) / 50, rtol=0, atol=1e-4
        )
    for value, original in zip([*values, single], [weight, 2 * weight[:32], weight], strict=True):
        torch.testing.assert_close(value.dequantize(), original, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [Hadamard(RTN(Grid(3, 32))), Hadamard(Hadamard(SINQ(Grid(4, 16)), seed=1))],
    ids=["rtn", "nested"],
)
@pytest.mark.parametrize("name", ["qwen3-tied", "moe", "gpt2"])
def test_a_reloaded_model_is_bit_for_bit_the_saved_one(name: str, method: Hadamard, tmp_path: Path) -> None:
    model, tokens = tiny_model(name), tiny_tokens()
    report = method.compress(model)
    sinq.save(model, tmp_path)
    again = sinq.load(tmp_path)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    saved, loaded = stored_tensors(model), stored_tensors(again)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    signs = sum(tensor.nbytes for key, tensor in saved.items() if "signs" in key)
    assert signs == sum(layer.shape[1] // 8 for layer in report.parts if layer.shape) * (
        2 if isinstance(method.inner, Hadamard) else 1
    )


def test_moving_a_model_keeps_its_rotations() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    Hadamard(RTN(Grid(8, 32))).compress(model)
    before = model(tokens).logits
    after = model.to(torch.bfloat16)(tokens).logits
    assert 0 < (after - before).norm() < 0.05 * before.norm()


def test_a_layer_without_a_hadamard_matrix_is_named_before_any_work() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = nn.Linear(116, 64, bias=False)
    with pytest.raises(
        NotApplicable,
        match=r"no Hadamard matrix is known here for the inputs of 1 layers: 1 like "
        r"model\.layers\.1\.mlp\.down_proj \(64×116\) have 116 inputs; use on_misfit=skip or layers\.exclude",
    ):
        Hadamard(Keep(Grid(group_size=4))).compress(model)
    assert isinstance(model.model.layers[0].self_attn.q_proj, nn.Linear)
    Hadamard(Keep(Grid(group_size=4))).compress(
        model, context=Context(Layers(exclude=("lm_head", "model.layers.1.mlp.down_proj")))
    )


ROTATED = [
    Hadamard(RTN(Grid(8, 4))),
    Hadamard(GPTQ(RTN(Grid(8, 4)))),
    Hadamard(Hadamard(RTN(Grid(8, 4)), seed=1)),
    Tuned(Hadamard(RTN(Grid(8, 4))), BlockTuning(epochs=1)),
]


@pytest.mark.parametrize("method", ROTATED, ids=lambda method: repr(method)[:30])
def test_on_misfit_skip_leaves_what_cannot_be_rotated_dense(method: Any) -> None:
    """Alone, around itself, and in a method that asks it for its plan."""
    model, calibration = tiny_model("llama"), Calibration(tiny_tokens())
    model.model.layers[1].mlp.up_proj = nn.Linear(64, 116, bias=False)
    model.model.layers[1].mlp.gate_proj = nn.Linear(64, 116, bias=False)
    model.model.layers[1].mlp.down_proj = odd = nn.Linear(116, 64, bias=False)
    dense = model(tiny_tokens()).logits
    report = method.compress(model, calibration, Context(Layers(on_misfit=OnMisfit.skip)))
    assert report.skipped == ("model.layers.1.mlp.down_proj",)
    assert model.model.layers[1].mlp.down_proj is odd
    assert len(report.parts) == 13
    assert (model(tiny_tokens()).logits - dense).norm() < 0.05 * dense.norm()


@pytest.mark.parametrize("policy", [OnMisfit.error, OnMisfit.shrink])
def test_a_smaller_group_rotates_no_better(policy: OnMisfit) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = nn.Linear(116, 64, bias=False)
    with pytest.raises(NotApplicable, match="116 inputs; use on_misfit=skip or"):
        Hadamard(RTN(Grid(group_size=64))).compress(model, context=Context(Layers(on_misfit=policy)))


def test_shrinking_still_fits_groups_to_layers_that_can_be_rotated() -> None:
    report = Hadamard(RTN(Grid(8, 48))).compress(
        tiny_model("llama"), context=Context(Layers(on_misfit=OnMisfit.shrink))
    )
    assert report.decisions == {"shrunk_group_size=32": len(report.parts)}


@pytest.mark.parametrize("kind", [ResidualHadamard, PreSINQ])
def test_methods_that_rewrite_skip_what_the_inner_one_cannot_compress(kind: Any) -> None:
    """All layers are rewritten; those that stay dense still compute the same function."""
    model = tiny_model("llama")
    dense = model(tiny_tokens()).logits
    layers = Layers(on_misfit=OnMisfit.skip)
    report = kind(RTN(Grid(8, 128))).compress(model, context=Context(layers))
    assert len(report.skipped) == 12
    assert [part.name for part in report.parts] == [f"model.layers.{k}.mlp.down_proj" for k in (0, 1)]
    assert (model(tiny_tokens()).logits - dense).norm() < 0.05 * dense.norm()


def test_the_inner_method_is_one_that_works_layer_by_layer() -> None:
    with pytest.raises(NotApplicable, match="inner=Dense does not work that way"):
        Hadamard(Dense())  # type: ignore[arg-type]


# tests/sinq/methods/test_presinq.py tests, with PreSINQ, that ResidualHadamard keeps a model's function.


@pytest.mark.parametrize("name", DECODERS)
def test_the_whole_residual_stream_is_rotated(name: str) -> None:
    model = random_decoder(name)
    tokens = tiny_tokens()
    before = model.model(tokens, output_hidden_states=True).hidden_states
    ResidualHadamard(Keep(), seed=2).rewrite(model, None, Context())
    after = model.model(tokens, output_hidden_states=True).hidden_states
    matrix = Rotation.random(64, seed=2).matrix()
    assert len(before) == 3
    # the last hidden state is behind the last norm, whose gain is gone
    for old, new in zip(before[:-1], after[:-1], strict=True):
        torch.testing.assert_close(new, old @ matrix.T, rtol=0, atol=1e-4)
    gains = [
        parameter
        for key, parameter in model.named_parameters()
        if "layernorm" in key or key == "model.norm.weight"
    ]
    assert len(gains) == 5
    assert all((gain == 1).all() for gain in gains)


def test_a_tied_head_becomes_a_matrix_of_its_own_also_when_reloaded(tmp_path: Path) -> None:
    model, tokens = random_decoder("qwen3-tied"), tiny_tokens()
    embedding = model.model.embed_tokens.weight.nbytes
    dense_bytes = sum(tensor.nbytes for tensor in stored_tensors(model).values())
    ResidualHadamard(Keep()).rewrite(model, None, Context())
    model.tie_weights()
    assert sum(tensor.nbytes for tensor in stored_tensors(model).values()) == dense_bytes + embedding
    RTN(Grid(8, 32)).compress(model)
    sinq.save(model, tmp_path)
    assert torch.equal(sinq.load(tmp_path)(tokens).logits, model(tokens).logits)


def test_a_residual_stream_without_a_hadamard_matrix_is_refused() -> None:
    model = tiny_model("llama")
    model.model.embed_tokens = nn.Embedding(96, 92)
    with pytest.raises(NotApplicable, match="for 92 inputs"):
        ResidualHadamard(Keep()).compress(model)
