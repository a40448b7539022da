"""Rounded inputs of compressed layers: against the definition, on disk, static scales, and refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sinq
from baselines.aqlm import AQLM
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.gwq import GWQ
from baselines.hadamard import Hadamard
from baselines.rtn import RTN
from sinq import SINQ, ActivationFormat, Activations, Calibration, Grid, Layers, Method, NotApplicable
from sinq.checkpoint.layout import LAYOUT
from sinq.formats.activations import Per
from sinq.kernels.product import product
from sinq.model.activations import ActivationQuantizer
from sinq.model.blocks import find_blocks
from sinq.model.context import Context
from sinq.model.linear import CompressedLinear
from sinq.model.rounded_inputs import quantizers
from tests.conftest import tiny_model

GRID = Grid(bits=4, group_size=32)
TOKENS = torch.arange(2 * 48).reshape(2, 48) % 90
TEXT = Calibration(TOKENS)
STATIC = ActivationFormat(8, Per.tensor, static=True)
DENSE_ARCHITECTURES = ("llama", "qwen3-tied", "gpt2", "opt")


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def layers(model: nn.Module) -> dict[str, CompressedLinear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, CompressedLinear)}


@pytest.mark.parametrize(
    "method",
    [
        RTN(GRID),
        SINQ(GRID),
        SINQ(replace(GRID, tiling=2)),
        Hadamard(SINQ(GRID), seed=1),
        GWQ(GRID, share=0.02),
        AQLM(rounds=1, steps=2),
    ],
    ids=lambda method: method.label,
)
def test_the_core_times_its_inputs_is_the_product(method: Any) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    statistic = method.statistic and method.statistic.of_noise((64, 64), torch.device("cpu"))
    value = method.quantize(weight, statistic)
    expected = x @ value.dequantize().T
    torch.testing.assert_close(product(value.core, value.core_inputs(x)), expected, rtol=1e-3, atol=1e-3)
    assert value.core.core is value.core


def test_the_column_scale_is_applied_before_rounding() -> None:
    model, format = tiny_model("llama"), ActivationFormat(4)
    Activations(SINQ(GRID), format).compress(model)
    layer = model.model.layers[0].mlp.down_proj
    x = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(0))
    scale = layer.weight.value.col_scale()[0]
    scaled = x * scale
    step = scaled.abs().amax(-1, keepdim=True) / 7
    expected = ((scaled / step).round().clamp(-8, 7) * step) @ (layer.weight.value.dequantize() / scale).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", DENSE_ARCHITECTURES)
def test_more_bits_are_nearer_to_dense_activations(architecture: str) -> None:
    weights_only = tiny_model(architecture)
    SINQ(GRID).compress(weights_only)
    target, distances = logits(weights_only), []
    for bits in (2, 4, 6, 8):
        model = tiny_model(architecture)
        Activations(SINQ(GRID), ActivationFormat(bits)).compress(model)
        distances.append((logits(model) - target).norm() / target.norm())
    assert distances == sorted(distances, reverse=True)
    assert 0 < distances[-1] < 0.02


@pytest.mark.parametrize("architecture", DENSE_ARCHITECTURES)
@pytest.mark.parametrize(
    "format",
    [
        ActivationFormat(4, group_size=32, symmetric=False),
        STATIC,
        replace(STATIC, symmetric=False, clip_ratio=0.9),
    ],
    ids=lambda format: format.label,
)
def test_a_saved_model_is_the_same(architecture: str, format: ActivationFormat, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    Activations(SINQ(GRID), format).compress(model, TEXT)
    sinq.save(model, tmp_path)
    assert torch.equal(logits(sinq.load(tmp_path)), logits(model))


def test_static_scales_are_stored_as_they_are(tmp_path: Path) -> None:
    """Neither a cast of the model nor one of the dense tensors in a file changes them."""
    model = tiny_model("llama")
    Activations(SINQ(GRID), STATIC).compress(model, TEXT)
    before = {name: part.get_buffer("scale").clone() for name, part in quantizers(model).items()}
    sinq.save(model, tmp_path, torch.float16)
    for other in (model.half(), sinq.load(tmp_path)):
        found = {name: part.get_buffer("scale") for name, part in quantizers(other).items()}
        assert found == before
        assert all(scale.dtype == torch.float32 for scale in found.values())


def test_a_static_scale_is_the_largest_input_of_the_text() -> None:
    method = RTN(GRID)
    plain, model = tiny_model("llama"), tiny_model("llama")
    method.compress(plain)
    seen: dict[str, float] = {}
    for name, layer in layers(plain).items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: max(seen.get(name, 0), args[0].abs().max().item())})
        )
    for window in TOKENS:
        plain(window[None])
    Activations(method, STATIC).compress(model, TEXT)
    for name, layer in layers(model).items():
        assert layer.inputs is not None
        assert layer.inputs.get_buffer("scale").item() == pytest.approx(seen[name] / 127, rel=1e-4)


def test_a_static_head_is_seen_too() -> None:
    model = tiny_model("llama")
    context = Context(Layers(exclude=()))
    Activations(RTN(GRID), STATIC).compress(model, TEXT, context)
    assert model.lm_head.inputs.get_buffer("scale") != 1


def test_a_text_that_is_louder_later_is_cut_to_the_static_range() -> None:
    model = tiny_model("llama")
    Activations(RTN(GRID), STATIC).compress(model, TEXT)
    quantizer = model.model.layers[0].mlp.down_proj.inputs
    top = 127 * quantizer.get_buffer("scale")
    assert torch.allclose(quantizer(torch.tensor([1e6, -1e6])), torch.stack([top, -128 / 127 * top]))


def test_weights_are_those_without_rounded_activations() -> None:
    plain, rounded = tiny_model("llama"), tiny_model("llama")
    method = GPTQ(RTN(GRID))
    report = method.compress(plain, TEXT)
    other = Activations(method, ActivationFormat(4)).compress(rounded, TEXT)
    assert [part.nbytes for part in report.parts] == [part.nbytes for part in other.parts]
    for name, layer in layers(plain).items():
        same = layers(rounded)[name].weight.value
        assert torch.equal(layer.weight.value.dequantize(), same.dequantize())


def test_the_gradient_passes_as_if_nothing_were_rounded() -> None:
    model = tiny_model("llama")
    Activations(RTN(GRID), ActivationFormat(4)).compress(model)
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    expected = layer.weight.value.dequantize().sum(0).expand(3, 64)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("change", "message"), [(float("nan"), "NaN or Inf"), (-1.0, "above 0"), (0.0, "above 0")]
)
def test_a_scale_of_a_file_that_is_none_is_refused(change: float, message: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    Activations(RTN(GRID), STATIC).compress(model, TEXT)
    name = "model.layers.0.mlp.down_proj.inputs"
    model.get_submodule(name).register_buffer("scale", torch.tensor(change))
    sinq.save(model, tmp_path)
    with pytest.raises(ValueError, match=rf"{name}: scale .*{message}"):
        sinq.load(tmp_path)


def test_a_file_without_the_scale_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    Activations(RTN(GRID), STATIC).compress(model, TEXT)
    sinq.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.endswith("inputs.scale")}, file)
    assert (tmp_path / LAYOUT).exists()
    with pytest.raises(ValueError, match=r"inputs\.scale"):
        sinq.load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "method", "format", "calibration", "message"),
    [
        ("llama", RTN(GRID), STATIC, None, "A8 static needs calibration text"),
        ("llama", RTN(GRID), ActivationFormat(group_size=48), None, "48 does not divide the 64 inputs"),
        ("llama", GPTQ(RTN(GRID)), ActivationFormat(), None, "GPTQ needs calibration text"),
    ],
)
def test_refusals_come_before_the_work(
    architecture: str, method: Method, format: ActivationFormat, calibration: Calibration | None, message: str
) -> None:
    model = tiny_model(architecture)
    with pytest.raises(NotApplicable, match=message):
        Activations(method, format).compress(model, calibration)
    assert not layers(model)


def test_experts_that_only_their_own_code_computes_are_refused() -> None:
    model = tiny_model("moe")
    for block in model.model.layers:
        del block.mlp.experts.config
    with pytest.raises(NotApplicable, match=r"experts.* cannot be rounded: .* layers\.exclude"):
        Activations(RTN(GRID), ActivationFormat()).compress(model)
    assert not layers(model)


def test_activations_that_are_not_finite_name_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    model.model.layers[1].input_layernorm.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj: inputs are not finite"):
        Activations(RTN(GRID), STATIC).compress(model, TEXT)


@pytest.mark.parametrize("zero", [0.5, 128.0, -129.0, 1e30])
def test_a_zero_of_a_file_that_is_no_byte_is_refused(zero: float, tmp_path: Path) -> None:
    model = tiny_model("llama")
    Activations(RTN(GRID), replace(STATIC, symmetric=False)).compress(model, TEXT)
    name = "model.layers.0.mlp.down_proj.inputs"
    model.get_submodule(name).register_buffer("zero", torch.tensor(zero))
    sinq.save(model, tmp_path)
    with pytest.raises(ValueError, match=rf"{name}: zero is .*; it must be a whole number from -128 to 127"):
        sinq.load(tmp_path)


def test_inputs_of_16_bits_are_not_rounded() -> None:
    with pytest.raises(NotApplicable, match=r"activation\.bits=16 rounds nothing; use RTN alone"):
        Activations(RTN(GRID), ActivationFormat(16))
    with pytest.raises(ValueError, match="16 bits are not rounded"):
        ActivationQuantizer(ActivationFormat(16))


def test_the_dense_model_has_no_inputs_to_round() -> None:
    with pytest.raises(NotApplicable, match="A8 is not possible with Dense"):
        Activations(Dense(), ActivationFormat())


def test_labels() -> None:
    assert Activations(SINQ(GRID), ActivationFormat()).label == "SINQ W4A8, weights g32"
    assert Activations(SINQ(GRID), STATIC).label == "SINQ W4A8 static, weights g32"


@pytest.mark.parametrize("architecture", DENSE_ARCHITECTURES)
def test_searched_scales_are_nearer_to_unrounded_inputs(architecture: str) -> None:
    """Each block's output is at least as near, and some scale is narrower than the whole range."""
    static = ActivationFormat(3, Per.tensor, static=True)
    errors, scales = [], []
    for windows in (0, 2):
        model = tiny_model(architecture)
        Activations(SINQ(GRID), replace(static, search_windows=windows)).compress(model, TEXT)
        first = find_blocks(model)[0]
        rounded = block_outputs(model, first)
        for part in quantizers(model).values():
            part.rounds = False
        errors.append((rounded - block_outputs(model, first)).norm())
        scales.append(torch.stack([part.get_buffer("scale") for part in quantizers(model).values()]))
    assert errors[1] <= errors[0]
    assert (scales[1] <= scales[0]).all()
    assert (scales[1] < scales[0]).any()


def block_outputs(model: nn.Module, block: nn.Module) -> Tensor:
    seen: list[Any] = []
    handle = block.register_forward_hook(lambda _, __, output: seen.append(output))
    logits(model)
    handle.remove()
    return seen[0] if isinstance(seen[0], Tensor) else seen[0][0]


def test_only_static_scales_are_searched() -> None:
    with pytest.raises(NotApplicable, match="dynamic scales are not searched"):
        ActivationFormat(4, search_windows=1)
