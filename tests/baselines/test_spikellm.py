"""SpikeLLM: channels by the paper's measure, neurons that fire behind them, and models that are kept."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinq
from baselines.dense import Dense
from baselines.hadamard import Hadamard
from baselines.rtn import RTN
from baselines.spikellm import SpikeLLM
from baselines.spikellm.channels import Salience, spiking_layers
from sinq import SINQ, ActivationFormat, Activations, Calibration, CompressedLinear, Grid, NotApplicable
from sinq.algorithms.saliency import drawn, first_order, largest, salient_count
from sinq.formats.spikes import NeuronFormat
from sinq.kernels.integer import dequantized
from sinq.kernels.product import core_inputs
from sinq.model.spikes import FireInputs, SpikingInputs
from tests.conftest import tiny_model

TOKENS = torch.arange(3 * 40).reshape(3, 40) % 90
TEXT = Calibration(TOKENS)
WEIGHTS = RTN(Grid(bits=8, group_size=32))
METHOD = SpikeLLM(WEIGHTS, NeuronFormat(bits=4, steps=2), share=0.1)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def spiking(method: SpikeLLM, model: Any = None, text: Calibration | None = TEXT) -> Any:
    model = tiny_model("llama") if model is None else model
    method.compress(model, text)
    return model


class TestSaliency:
    def test_it_is_the_mean_over_tokens(self) -> None:
        """Against the definition, token by token; the sum over channels is the mean of ‖Wx‖²."""
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.randn(4, 8, generator=generator), torch.randn(5, 8, generator=generator)
        x, weight = x.double(), weight.double()
        each = torch.stack([(row @ weight.T @ weight) * row for row in x])
        found = first_order(weight, x.T @ x / len(x))
        torch.testing.assert_close(found, each.mean(0))
        torch.testing.assert_close(found.sum(), (x @ weight.T).square().sum(1).mean())
        assert (each.mean(0) < 0).any()  # signed

    def test_a_factor_of_a_channel_changes_nothing(self) -> None:
        generator = torch.Generator().manual_seed(0)
        weight, x = torch.randn(5, 8, generator=generator), torch.randn(30, 8, generator=generator)
        factor = torch.rand(8, generator=generator) + 0.5
        moved = first_order(weight / factor, (x * factor).T @ (x * factor))
        torch.testing.assert_close(moved, first_order(weight, x.T @ x), rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize(
        ("channels", "share", "count"),
        [
            (576, 0.1, 58),
            (1536, 0.1, 154),
            (576, 0.05, 29),
            (20, 0.05, 1),
            (10, 0.1, 1),
            (7, 0, 0),
            (7, 1, 7),
        ],
    )
    def test_their_number_is_the_release_s(self, channels: int, share: float, count: int) -> None:
        assert salient_count(channels, share) == count
        assert int(largest(torch.randn(channels), share).sum()) == count
        assert int(drawn(channels, share, 0).sum()) == count

    def test_of_equal_channels_the_first_are_taken(self) -> None:
        assert largest(torch.tensor([1.0, 2, 1, 2, 1]), 0.6).tolist() == [True, True, False, True, False]

    def test_draws_are_those_of_the_seed(self) -> None:
        assert torch.equal(drawn(64, 0.1, 3), drawn(64, 0.1, 3))
        assert not torch.equal(drawn(64, 0.1, 3), drawn(64, 0.1, 4))


@pytest.mark.parametrize(
    "inner", [WEIGHTS, SINQ(Grid(4, 32)), Hadamard(RTN(Grid(4, 32)))], ids=["rtn", "sinq", "hadamard"]
)
def test_channels_are_those_of_the_inputs_behind_blocks_that_fire(inner: Any) -> None:
    """The masks of the second block, from its inputs by hooks on a model whose first block fires."""
    model = spiking(replace(METHOD, inner=inner))
    block = model.model.layers[1]
    layers = [part for part in block.modules() if isinstance(part, CompressedLinear)]
    seen: dict[CompressedLinear, list[Tensor]] = {layer: [] for layer in layers}
    for layer in layers:
        assert isinstance(layer.inputs, SpikingInputs)
        layer.inputs.rounds = False
        layer.register_forward_pre_hook(lambda part, args: seen[part].append(args[0]))
    logits(model)
    for layer in layers:
        value, inputs = layer.weight.value, layer.inputs
        assert isinstance(inputs, SpikingInputs)
        x = core_inputs(value, torch.cat(seen[layer]).flatten(0, 1)).double()
        weight = value.core.dequantize().double()
        score = ((x @ weight.T @ weight) * x).mean(0)
        mask = inputs.mask()
        assert int(mask.sum()) == salient_count(layer.in_features, 0.1)
        assert score[mask].min() >= score[~mask].max() - 1e-4 * score.abs().max()


def test_it_computes_what_its_neurons_fire() -> None:
    """Each layer against float64, from its mask, its token's extremes and nothing else of the code."""
    model = spiking(replace(METHOD, share=0.3, neurons=NeuronFormat(3, 4)))
    for layer, inputs in spiking_layers(model):
        x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0)) + 0.5
        wide, mask = x.double(), inputs.mask()
        span = wide.amax(1, keepdim=True).clamp_min(0) - wide.amin(1, keepdim=True).clamp_max(0)
        steps = torch.where(mask, 4 * 7, 7)
        scale = span / steps
        zero = (-wide.amin(1, keepdim=True).clamp_max(0) / scale).round()
        codes = (wide / scale + zero).round().clamp_min(0).minimum(steps.double())
        expected = ((codes - zero) * scale) @ layer.weight.value.dequantize(torch.float64).T
        with torch.no_grad():
            assert (layer(x) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("options", [{"neurons": NeuronFormat(4, 1)}, {"share": 0.0}])
def test_without_longer_neurons_it_is_plain_rounding(options: dict[str, Any]) -> None:
    """T = 1: against the codes of asymmetric activations, multiplied in float64."""
    method = replace(METHOD, **options)
    assert not method.needs_calibration
    format = ActivationFormat(4, symmetric=False)
    for layer, _ in spiking_layers(spiking(method, text=None)):
        x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0))
        plain = format.quantize(x, *format.scales(*format.extremes(x)))
        expected = dequantized(layer.weight.value, plain, None, torch.float64)
        with torch.no_grad():
            assert (layer(x) - expected).norm() <= 1e-5 * expected.norm()


def test_binary_spikes_compute_the_same() -> None:
    model = spiking(METHOD)
    other = spiking(replace(METHOD, neurons=NeuronFormat(4, 2, binary=True)))
    for (layer, inputs), (expanded, binary) in zip(spiking_layers(model), spiking_layers(other), strict=True):
        assert torch.equal(inputs.mask(), binary.mask())
        x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(expanded(x), layer(x), rtol=1e-5, atol=1e-5)


def output_error(model: nn.Module) -> float:
    """Mean over layers of the relative error of outputs that rounding of inputs makes."""
    errors = []
    for layer, _ in spiking_layers(model):
        x = uneven(64, layer.in_features)
        expected = x @ layer.weight.value.dequantize().T
        with torch.no_grad():
            errors.append(((layer(x) - expected).norm() / expected.norm()).item())
    return fmean(errors)


def uneven(rows: int, columns: int) -> Tensor:
    """Noise whose columns have very different sizes, as inputs and weights of trained models have."""
    generator = torch.Generator().manual_seed(columns)
    sizes = torch.randn(columns, generator=generator).exp()
    return torch.randn(rows, columns, generator=generator) * sizes


def test_measured_channels_beat_drawn_ones_and_those_beat_none() -> None:
    """On the error of layers whose large inputs meet large weights, each with the mask for its inputs."""
    model, found = tiny_model("llama"), {}
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(uneven(*module.weight.shape))
    spiking(replace(METHOD, salience=Salience.random), model)
    for name in ("measured", "drawn", "none"):
        for index, (layer, inputs) in enumerate(spiking_layers(model)):
            x, weight = uneven(64, layer.in_features), layer.weight.value.dequantize()
            mask = largest(first_order(weight, x.T @ x), 0.1)
            if name != "measured":
                mask = drawn(layer.in_features, 0.1, index) if name == "drawn" else torch.zeros_like(mask)
            inputs.choose(mask)
        found[name] = output_error(model)
    assert found["measured"] < 0.8 * found["drawn"]
    assert found["drawn"] < found["none"]


def test_more_steps_lose_less() -> None:
    errors = []
    for steps in (1, 2, 4):
        model = spiking(replace(METHOD, neurons=NeuronFormat(4, steps), share=0.5))
        errors.append(output_error(model))
    assert errors[0] > errors[1] > errors[2]


def test_a_saved_model_fires_on(tmp_path: Path) -> None:
    """Saved, loaded, and loaded again from what was saved of that; text token by token is the same text."""
    model = spiking(METHOD)
    sinq.save(model, tmp_path / "first")
    loaded = sinq.load(tmp_path / "first")
    assert torch.equal(logits(loaded), logits(model))
    sinq.save(loaded, tmp_path / "second")
    assert torch.equal(logits(sinq.load(tmp_path / "second")), logits(model))
    generated = loaded.generate(TOKENS[:1, :8], max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, model.generate(TOKENS[:1, :8], max_new_tokens=4, do_sample=False))


def test_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    """The report counts a bit for each channel beside the codes and scales."""
    model, plain = tiny_model("llama"), tiny_model("llama")
    report, without = METHOD.compress(model, TEXT), WEIGHTS.compress(plain)
    masks = [inputs.get_buffer("salient") for _, inputs in spiking_layers(model)]
    assert sum(mask.nbytes for mask in masks) == sum(
        -(-layer.in_features // 8) for layer, _ in spiking_layers(model)
    )
    assert report.nbytes == without.nbytes + sum(mask.nbytes for mask in masks)
    stored = sum(tensor.nbytes for tensor in sinq.stored_tensors(model).values())
    assert stored == sum(t.nbytes for t in sinq.stored_tensors(plain).values()) + sum(m.nbytes for m in masks)


def test_a_gradient_passes_as_if_nothing_fired() -> None:
    layer, _ = spiking_layers(spiking(METHOD))[0]
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.value.dequantize().sum(0).expand(3, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_enter_the_sums(dtype: torch.dtype) -> None:
    """Integers above 2048 are not exact in float16: the loop adds in float32, and rounds its result once."""
    layer, _ = spiking_layers(spiking(METHOD))[0]
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.float()).to(dtype))


class TestRefusals:
    def test_channels_need_text(self) -> None:
        model = tiny_model("llama")
        with pytest.raises(NotApplicable, match="SpikeLLM needs calibration text to find salient channels"):
            METHOD.compress(model, None)
        assert not sinq.model.edits.edits(model)

    def test_channels_by_lot_need_none(self) -> None:
        method = replace(METHOD, salience=Salience.random)
        assert not method.needs_calibration
        assert all(inputs.mask().any() for _, inputs in spiking_layers(spiking(method, text=None)))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Activations(METHOD, ActivationFormat(8)),
            lambda: SpikeLLM(Activations(WEIGHTS, ActivationFormat(8))),
            lambda: SpikeLLM(METHOD),
        ],
        ids=["codes around spikes", "spikes around codes", "twice"],
    )
    def test_inputs_are_rounded_once(self, make: Any) -> None:
        with pytest.raises(NotApplicable, match="is not possible around"):
            make()

    def test_a_dense_model_has_no_codes_to_multiply(self) -> None:
        with pytest.raises(NotApplicable, match="Dense"):
            SpikeLLM(Dense())

    def test_fused_experts_do_not_show_their_inputs(self) -> None:
        model = tiny_model("moe")
        with pytest.raises(NotApplicable, match="code of the model multiplies by fused experts"):
            METHOD.compress(model, TEXT)
        assert not sinq.model.edits.edits(model)

    @pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
    def test_a_share_is_one(self, share: float) -> None:
        with pytest.raises(ValueError, match=f"method.share={share}"):
            replace(METHOD, share=share)

    def test_only_inputs_of_compressed_layers_fire(self) -> None:
        with pytest.raises(ValueError, match="lm_head is a Linear; inputs of compressed layers fire"):
            FireInputs("lm_head", {"bits": 4}).apply(tiny_model("llama"))

    def test_a_mask_of_another_size_is_refused(self) -> None:
        inputs = SpikingInputs(NeuronFormat(), 20)
        with pytest.raises(ValueError, match="salient"):
            inputs.take({"salient": torch.zeros(2, dtype=torch.uint8)})
