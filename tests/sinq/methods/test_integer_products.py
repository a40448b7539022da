"""Integer products of a model's layers: equal to simulated ones, saved, and refused where they cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinq
from baselines.aqlm import AQLM
from baselines.gptq import GPTQ
from baselines.gwq import GWQ
from baselines.hadamard import Hadamard
from baselines.hqq import HQQ
from baselines.rtn import RTN
from sinq import SINQ, ActivationFormat, Activations, Calibration, Grid, Kernel, Levels, Method, using
from sinq.formats.activations import Per
from sinq.formats.codebooks import Codebooks
from sinq.kernels.integer import Products, dequantized
from sinq.model.activations import ActivationQuantizer
from sinq.model.experts import choices
from sinq.model.linear import CompressedLinear
from tests.conftest import tiny_model

GRID = Grid(bits=4, group_size=32)
TOKENS = torch.arange(2 * 48).reshape(2, 48) % 90
TEXT = Calibration(TOKENS)
SYMMETRIC, ASYMMETRIC = ActivationFormat(8), ActivationFormat(8, symmetric=False)
STATIC = ActivationFormat(8, Per.tensor, static=True)
FORMATS = [
    SYMMETRIC,
    ASYMMETRIC,
    ActivationFormat(4, group_size=32, symmetric=False, clip_ratio=0.9),
    ActivationFormat(8, Per.tensor),
    STATIC,
    ActivationFormat(8, Per.tensor, symmetric=False, static=True),
]
CODEBOOKS = AQLM(format=Codebooks(2, 4, 4), init_iterations=2, rounds=1, steps=2)
METHODS: list[Any] = [
    SINQ(GRID),
    SINQ(Grid(bits=3, group_size=32, symmetric=True)),
    SINQ(Grid(bits=8, group_size=32, auxiliary_bits=8)),
    RTN(Grid(bits=2, group_size=8)),
    RTN(Grid(bits=5, group_size=64)),
    HQQ(GRID),
    GPTQ(RTN(Grid(bits=6, group_size=32))),
    Hadamard(SINQ(GRID), seed=1),
]


def name(value: Any) -> str:
    return f"{value.label}{'' if getattr(value, 'symmetric', True) else ' asymmetric'}".replace(" ", "-")


def logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens).logits
    return found


def layers(model: nn.Module) -> list[CompressedLinear]:
    return [part for part in model.modules() if isinstance(part, CompressedLinear)]


def rounded(method: Method, format: ActivationFormat, products: Products = Products.integer) -> Any:
    model = tiny_model("llama")
    Activations(method, format, products).compress(model, TEXT)
    return model


@pytest.mark.parametrize("method", METHODS, ids=name)
@pytest.mark.parametrize("format", FORMATS, ids=name)
def test_layers_multiply_integers(method: Any, format: ActivationFormat) -> None:
    """Against float64, on codes that the layer rounds itself."""
    model = rounded(method, format)
    assert {choice.kernel for choice in choices(model)} == {"cpu_int8"}
    for layer in layers(model)[:7]:
        value, quantizer = layer.weight.value, layer.inputs
        assert isinstance(quantizer, ActivationQuantizer)
        for tokens in (1, 11):
            x = torch.randn(tokens, layer.in_features, generator=torch.Generator().manual_seed(tokens))
            seen = value.core_inputs(x)
            exact = dequantized(value.core, quantizer.quantize(seen), None, torch.float64)
            with torch.no_grad():
                found = layer(x)
            assert (found - exact).norm() <= 1e-5 * exact.norm()
            assert torch.equal(quantizer(seen), quantizer.quantize(seen).dequantize())


@pytest.mark.parametrize("format", FORMATS, ids=name)
def test_a_model_computes_what_is_simulated(format: ActivationFormat) -> None:
    """Only nearly: rounding in the next layer may turn a last digit into a step."""
    expected = logits(rounded(SINQ(GRID), format, Products.simulated))
    distance = (logits(rounded(SINQ(GRID), format)) - expected).norm() / expected.norm()
    assert distance < (1e-2 if format.bits == 4 else 1e-3)


def test_a_saved_model_multiplies_integers(tmp_path: Path) -> None:
    model = rounded(SINQ(GRID), STATIC)
    sinq.save(model, tmp_path)
    loaded = sinq.load(tmp_path)
    assert {choice.kernel for choice in choices(loaded)} == {"cpu_int8"}
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("method", "format", "reason"),
    [
        (RTN(Grid(4, 32, levels=Levels.nf4)), SYMMETRIC, "levels=nf4 is a table"),
        (SINQ(Grid(4, 32, tiling=2)), SYMMETRIC, "column scales stand between codes and inputs"),
        (GWQ(GRID, share=0.02), SYMMETRIC, "SparseOutliers has no product of integers"),
        (
            CODEBOOKS,
            SYMMETRIC,
            "AdditiveTensor has no product of integers",
        ),
        (RTN(GRID), ActivationFormat(8, group_size=4), "activation.group_size=4 is no multiple of 8"),
    ],
    ids=["nf4", "tiles", "outliers", "codebooks", "groups"],
)
def test_what_is_refused_is_simulated_and_says_so(method: Any, format: ActivationFormat, reason: str) -> None:
    model, simulated = rounded(method, format), rounded(method, format, Products.simulated)
    for choice, other in zip(choices(model), choices(simulated), strict=True):
        assert choice.kernel == other.kernel != "cpu_int8"
        assert reason in choice.refusals[0]
        assert choice.refusals[1:] == other.refusals
    assert torch.equal(logits(model), logits(simulated))


def test_the_definition_is_simulated_too() -> None:
    model = rounded(SINQ(GRID), SYMMETRIC)
    simulated = rounded(SINQ(GRID), SYMMETRIC, Products.simulated)
    with using(Kernel.reference):
        assert "kernel=reference was asked for" in choices(model)[0].refusals[0]
        assert torch.equal(logits(model), logits(simulated))


def test_a_gradient_is_that_of_the_simulation() -> None:
    gradients = []
    for products in Products:
        layer = rounded(RTN(GRID), SYMMETRIC, products).model.layers[0].self_attn.q_proj
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        layer(x).square().sum().backward()
        gradients.append(x.grad)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert gradients[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_halves_keeps_their_dtype(dtype: torch.dtype) -> None:
    model = rounded(SINQ(GRID), ASYMMETRIC).to(dtype)
    layer = model.model.layers[0].mlp.down_proj
    x = torch.randn(9, layer.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        found = layer(x)
    assert found.dtype == dtype
    seen = layer.inputs.quantize(layer.weight.value.core_inputs(x))
    exact = dequantized(layer.weight.value.core, seen, None, torch.float64)
    assert (
        torch.equal(found, exact.to(dtype)) or (found - exact).norm() < torch.finfo(dtype).eps * exact.norm()
    )


@pytest.mark.parametrize("products", [Products.integer, Products.bitplanes])
def test_a_layer_is_one_compiled_graph(products: Products) -> None:
    """Also where a compiler takes numbers of tokens, and of inputs after a second layer, for symbols."""
    torch._dynamo.reset()  # what other tests compiled counts toward a limit
    mlp = rounded(SINQ(GRID), ASYMMETRIC, products).model.layers[0].mlp
    for layer in (mlp.down_proj, mlp.up_proj, mlp.down_proj):
        for tokens in (1, 20):
            x = torch.randn(tokens, layer.in_features)
            with torch.no_grad():
                expected = layer(x)
                compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
                torch.testing.assert_close(compiled(x), expected)
