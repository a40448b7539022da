"""Output errors of layers, against activations kept whole and products in float64."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experiments.evaluation import EvaluationContext, LayerError
from experiments.models.source import sparing_clone
from sinq import SINQ, Grid
from tests.experiments.tiny import subject

OPTIONS = LayerError(windows=2, seqlen=32)
SINQ3 = SINQ(Grid(bits=3, group_size=32))


def compressed(architecture: str) -> EvaluationContext:
    dense = subject(architecture)
    model: Any = sparing_clone(dense.model)
    return replace(dense, model=model, report=SINQ3.compress(model))


def by_hand(given: EvaluationContext) -> dict[str, float]:
    """Every linear layer's error, from all inputs the dense model ever gave it."""
    inputs: dict[str, list[Tensor]] = {}
    modules = {name: m for name, m in given.loaded.model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].flatten(0, -2))
        )
        for name, module in modules.items()
    ]
    for window in given.tokens[:64].reshape(2, 32):
        given.loaded.model(window[None])
    for handle in handles:
        handle.remove()
    errors = {}
    for layer in given.report.parts:
        if layer.name in modules:
            x = torch.cat(inputs[layer.name]).double()
            weight = modules[layer.name].weight.double()
            weight = weight.T if isinstance(modules[layer.name], Conv1D) else weight
            stored: Any = given.model.get_submodule(layer.name).weight
            difference = weight - stored.value.dequantize().double()
            errors[layer.name] = ((x @ difference.T).norm() / (x @ weight.T).norm()).item()
    return errors


def test_it_is_the_plain_computation(architecture: str) -> None:
    given = compressed(architecture)
    measured, expected = OPTIONS.measure(given), by_hand(given)
    assert len(expected) >= 8
    assert measured.samples["relative_error"] == pytest.approx(expected, rel=1e-4)
    worst = max(expected, key=expected.__getitem__)
    assert measured.metrics["worst"] == worst
    assert measured.metrics["max"] == pytest.approx(expected[worst], rel=1e-4)
    assert measured.metrics["mean"] == pytest.approx(sum(expected.values()) / len(expected), rel=1e-4)
    assert measured.metrics["median"] == pytest.approx(
        torch.tensor(list(expected.values())).quantile(0.5).item(), rel=1e-4
    )
    assert (measured.metrics["layers"], measured.metrics["tokens"]) == (len(expected), 64)


def test_fused_experts_are_counted_as_not_comparable() -> None:
    experts = 2 * 2 * 4  # in two layers, two parameters of four experts
    assert OPTIONS.measure(compressed("moe")).metrics["not_comparable"] == {"not one linear layer": experts}
    assert OPTIONS.measure(compressed("llama")).metrics["not_comparable"] == {}


def test_a_layer_whose_input_was_transformed_is_not_compared() -> None:
    """Move scales from matrices behind a norm into it: first layers of the same model get other inputs."""
    given = compressed("llama")
    model: Any = copy.deepcopy(given.loaded.model)
    scale = torch.linspace(0.5, 2, 64)
    for block in model.model.layers:
        block.input_layernorm.weight *= scale
        for matrix in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            matrix.weight /= scale
    window = given.tokens[None, :32]
    assert torch.allclose(model(window).logits, given.loaded.model(window).logits, atol=1e-5)
    metrics = OPTIONS.measure(replace(given, model=model, report=SINQ3.compress(model))).metrics
    assert (metrics["layers"], metrics["not_comparable"]) == (8, {"weight transformed": 6})


def test_where_nothing_can_be_compared_there_are_no_errors() -> None:
    given = compressed("llama")
    for parameter in given.loaded.model.parameters():
        parameter.mul_(-1)
    metrics = OPTIONS.measure(given).metrics
    assert metrics == {
        **{"layers": 0, "not_comparable": {"weight transformed": 14}},
        **{"tokens": 64, "windows": 2, "seqlen": 32},
    }


def test_a_layer_of_zeros_has_no_relative_error() -> None:
    dense = subject()
    model: Any = dense.model
    model.model.layers[0].mlp.down_proj.weight.zero_()
    clone: Any = sparing_clone(model)
    metrics = OPTIONS.measure(replace(dense, model=clone, report=SINQ3.compress(clone))).metrics
    assert (metrics["layers"], metrics["not_comparable"]) == (13, {"output is zero": 1})


def test_a_dense_model_has_none_and_hooks_are_gone() -> None:
    assert OPTIONS.measure(subject()).metrics == {}
    given = compressed("llama")
    OPTIONS.measure(given)
    assert not any(module._forward_hooks for module in given.loaded.model.modules())


def test_a_text_shorter_than_a_window_is_refused_early() -> None:
    with pytest.raises(ValueError, match="0 tokens, fewer than one window of seqlen=64"):
        LayerError().check(subject(windows=0))
