"""Operations: what fires is counted, from nothing but the inputs of layers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.rtn import RTN
from baselines.spikellm import SpikeLLM
from experiments.evaluation import EvaluationContext, Operations
from experiments.models.source import sparing_clone
from sinq import SINQ, ActivationFormat, Activations, Calibration, CompressedLinear, Grid, Method
from sinq.formats.spikes import NeuronFormat
from sinq.kernels.integer import Products
from sinq.kernels.product import core_inputs
from sinq.model.spikes import SpikingInputs
from tests.conftest import tiny_tokens
from tests.experiments.tiny import subject

OPTIONS = Operations(windows=2, seqlen=32)
WEIGHTS = RTN(Grid(3, 32))
SPIKES = SpikeLLM(WEIGHTS, NeuronFormat(3, 4), share=0.25)
CODES = ActivationFormat(5)


def compressed(method: Method) -> EvaluationContext:
    dense = subject("llama")
    model: Any = sparing_clone(dense.model)
    return replace(dense, model=model, report=method.compress(model, Calibration(tiny_tokens())))


def inputs(given: EvaluationContext) -> dict[str, Tensor]:
    """All inputs of each compressed layer, as its codes see them."""
    seen: dict[str, list[Tensor]] = {}
    for name, layer in given.model.named_modules():
        if isinstance(layer, CompressedLinear):
            see = seen.setdefault(name, []).append
            layer.register_forward_pre_hook(
                lambda part, args, see=see: see(core_inputs(part.weight.value, args[0]))
            )
    with torch.no_grad():
        for window in given.tokens[:64].reshape(2, 32):
            given.model(window[None])
    return {name: torch.cat(each).flatten(0, 1) for name, each in seen.items()}


def test_spikes_are_those_of_the_membranes() -> None:
    """In plain Python, neuron by neuron."""
    given = compressed(SPIKES)
    work = OPTIONS.measure(given).samples["work"]
    for name, x in list(inputs(given).items())[:3]:
        layer = given.model.get_submodule(name)
        assert isinstance(layer, CompressedLinear)
        assert isinstance(layer.inputs, SpikingInputs)
        mask, spikes, steps = layer.inputs.mask(), 0, 0
        for token in x:
            low, high = float(token.min().clamp_max(0)), float(token.max().clamp_min(0))
            for value, salient in zip(token.tolist(), mask.tolist(), strict=True):
                count = 4 if salient else 1
                scale = (high - low) / (7 * count)
                membrane = round(value / scale + round(-low / scale))
                for _ in range(count):
                    fired = max(0, min(membrane, 7))
                    membrane, spikes, steps = membrane - fired, spikes + fired, steps + 1
        assert work[name]["spikes"] == pytest.approx(spikes, rel=1e-4)  # float32 divides otherwise
        assert work[name]["steps"] == steps
        assert work[name]["synaptic_operations"] == work[name]["spikes"] * layer.out_features


def test_totals_and_means() -> None:
    measured = OPTIONS.measure(compressed(SPIKES))
    work = list(measured.samples["work"].values())
    metrics, total = measured.metrics, {key: sum(each[key] for each in work) for key in work[0]}
    assert metrics["steps_per_input"] == total["steps"] / total["inputs"]
    assert 1 < metrics["steps_per_input"] <= 1 + 3 * 0.3
    assert metrics["spikes_per_input"] == total["spikes"] / total["inputs"]
    assert metrics["synaptic_operations"] == total["synaptic_operations"] > 0
    assert (metrics["bit_operations"], metrics["layers"], metrics["tokens"]) == (0, 14, 64)


def test_binary_spikes_take_more_steps_of_the_same_spikes() -> None:
    plain = OPTIONS.measure(compressed(SPIKES)).metrics
    binary = OPTIONS.measure(compressed(replace(SPIKES, neurons=NeuronFormat(3, 4, binary=True)))).metrics
    assert binary["spikes_per_input"] == pytest.approx(plain["spikes_per_input"], rel=1e-3)
    assert binary["steps_per_input"] == pytest.approx(7 * plain["steps_per_input"])


def test_bit_planes_count_bits() -> None:
    """A number of bits by Python, and p · q binary products for each product of numbers."""
    given = compressed(Activations(SINQ(Grid(3, 32)), CODES, Products.bitplanes))
    measured = OPTIONS.measure(given)
    for name, x in list(inputs(given).items())[:3]:
        codes = CODES.quantize(x, *CODES.scales(*CODES.extremes(x))).codes
        work = measured.samples["work"][name]
        bits = sum((code % 32).bit_count() for code in codes.flatten().tolist())
        rows = given.model.get_submodule(name).out_features  # type: ignore[union-attr]
        assert work["spikes"] == bits
        assert work["synaptic_operations"] == bits * 3 * rows
        assert work["bit_operations"] == 3 * 5 * x.numel() * rows
        assert work["steps"] == 5 * x.numel()
    assert measured.metrics["bit_operations"] == 15 * measured.metrics["multiplications"]


@pytest.mark.parametrize("products", [Products.simulated, Products.integer])
def test_products_of_numbers_have_no_spikes(products: Products) -> None:
    metrics = OPTIONS.measure(compressed(Activations(WEIGHTS, CODES, products))).metrics
    assert metrics["steps_per_input"] == 1
    assert not metrics["spikes_per_input"] + metrics["synaptic_operations"] + metrics["bit_operations"]
    assert metrics["multiplications"] > 0


def test_nothing_is_counted_where_no_inputs_are_rounded() -> None:
    assert OPTIONS.measure(subject("llama")).metrics == {}
    assert OPTIONS.measure(compressed(WEIGHTS)).metrics == {}


def test_hooks_are_gone_afterwards() -> None:
    given = compressed(SPIKES)
    OPTIONS.measure(given)
    assert not any(part._forward_pre_hooks for part in given.model.modules())
