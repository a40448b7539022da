"""Fused experts as layers: the mixture against a loop of its own, rounded inputs, models that are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

import sinq
from baselines.rtn import RTN
from sinq import ActivationFormat, Activations, Calibration, Grid, Layers
from sinq.formats.activations import Per
from sinq.kernels.integer import Products
from sinq.model.activations import ActivationQuantizer
from sinq.model.context import Context
from sinq.model.edits import edit
from sinq.model.expert_layers import ExpertLayers, SeparateExperts
from sinq.model.linear import CompressedLinear
from tests.conftest import tiny_model, tiny_tokens

WEIGHTS = RTN(Grid(4, 32))
TOKENS = tiny_tokens()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def rounded(format: ActivationFormat, inner: Any = WEIGHTS, **options: Any) -> Any:
    model = tiny_model("moe")
    Activations(inner, format, **options).compress(model, Calibration(TOKENS))
    return model


def mixture(module: Any, states: Tensor, chosen: Tensor, shares: Tensor, format: ActivationFormat) -> Tensor:
    """A Qwen3 mixture token by token in float64, from dequantized weights and codes of single inputs."""

    def product(layer: Any, x: Tensor) -> Tensor:
        codes = format.quantize(x[None], *format.scales(*format.extremes(x[None]))).dequantize()[0]
        return linear(codes.double(), layer.weight.value.dequantize(torch.float64))

    total = torch.zeros_like(states, dtype=torch.float64)
    for token, x in enumerate(states):
        for expert, share in zip(chosen[token].tolist(), shares[token], strict=True):
            gate, up = product(module.gate_up_proj[expert], x).chunk(2)
            total[token] += share * product(module.down_proj[expert], (silu(gate) * up).float())
    return total


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_of_both_projections_are_rounded(symmetric: bool) -> None:
    format = ActivationFormat(4, symmetric=symmetric)
    experts = rounded(format).model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(0)
    states, shares = torch.randn(9, 64, generator=generator), torch.rand(9, 2, generator=generator)
    chosen = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(9)])
    with torch.no_grad():
        found = experts(states, chosen, shares)
    expected = mixture(experts, states, chosen, shares, format)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_layers_compute_what_fused_experts_do() -> None:
    """Nothing is rounded yet: the model's own code, and ours, on the same weights."""
    model = tiny_model("moe")
    WEIGHTS.compress(model)
    before = logits(model)
    for name in [f"model.layers.{k}.mlp.experts.{part}_proj" for k in (0, 1) for part in ("gate_up", "down")]:
        edit(model, SeparateExperts(name))
        torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    assert sum(isinstance(part, ExpertLayers) for part in model.modules()) == 4


def test_experts_that_nothing_was_sent_to_are_skipped() -> None:
    experts = rounded(ActivationFormat(8)).model.layers[0].mlp.experts
    states = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        once = experts(states, torch.tensor([[1, 4]]), torch.tensor([[0.5, 0.5]]))  # 4 is no expert
        assert torch.equal(once, experts(states, torch.tensor([[1]]), torch.tensor([[0.5]])))


def test_a_projection_may_stay_dense() -> None:
    model = tiny_model("moe")
    layers = Layers(exclude=("lm_head", "down_proj"))
    Activations(WEIGHTS, ActivationFormat(8)).compress(model, context=Context(layers=layers))
    experts = model.model.layers[0].mlp.experts
    assert isinstance(experts.gate_up_proj, ExpertLayers)
    assert isinstance(experts.down_proj, nn.Parameter)
    dense = logits(tiny_model("moe"))
    assert 0 < (logits(model) - dense).norm() < 0.3 * dense.norm()


@pytest.mark.parametrize("products", [Products.integer, Products.bitplanes])
def test_codes_are_multiplied_by_codes(products: Products) -> None:
    model = rounded(ActivationFormat(8), products=products)
    layers = [part for part in model.modules() if isinstance(part, CompressedLinear)]
    assert all(layer.kernel in ("cpu_int8", "cpu_bitplanes") for layer in layers)
    simulated = logits(rounded(ActivationFormat(8)))  # a code may differ where one lies between two
    assert (logits(model) - simulated).norm() <= 0.01 * simulated.norm()


@pytest.mark.parametrize("static", [False, True])
def test_they_are_saved_and_loaded(static: bool, tmp_path: Path) -> None:
    model = rounded(ActivationFormat(8, Per.tensor, static=True) if static else ActivationFormat(4))
    quantizers = [part for part in model.modules() if isinstance(part, ActivationQuantizer)]
    assert len(quantizers) == 2 * (4 + 2 * 4)  # attention's, and two of each expert
    sinq.save(model, tmp_path / "model")
    assert torch.equal(logits(sinq.load(tmp_path / "model")), logits(model))


def test_what_is_not_experts_is_refused() -> None:
    model = tiny_model("moe")
    with pytest.raises(ValueError, match="is a Linear; compressed experts are taken apart"):
        edit(model, SeparateExperts("model.layers.0.self_attn.q_proj"))
    WEIGHTS.compress(model)
    del model.model.layers[0].mlp.experts.config
    with pytest.raises(ValueError, match="does not choose how its experts are computed"):
        edit(model, SeparateExperts("model.layers.0.mlp.experts.gate_up_proj"))
