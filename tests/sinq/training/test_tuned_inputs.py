"""Tuning behind rounded inputs: gradients of static scales, and that what is tuned is what is kept."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.rtn import RTN
from baselines.spikellm import SpikeLLM
from baselines.spikellm.channels import spiking_layers
from sinq import (
    ActivationFormat,
    Activations,
    BlockTuning,
    BlockView,
    Calibration,
    Context,
    Grid,
    Tuned,
    walk,
)
from sinq.formats.activations import Per
from sinq.formats.spikes import NeuronFormat
from sinq.methods.coded_inputs import CodedInputs
from sinq.model.activations import ActivationQuantizer
from sinq.model.blocks import HiddenStates
from sinq.model.rounded_inputs import static_quantizers
from sinq.training.block_tuning import TuningResult
from tests.baselines.inputs import with_outliers
from tests.conftest import tiny_model

TOKENS = torch.arange(4 * 24).reshape(4, 24) * 7 % 90
TEXT = Calibration(TOKENS)
INNER = RTN(Grid(bits=4, group_size=32))
STATIC = ActivationFormat(3, Per.tensor, static=True)
WITH_ZERO = replace(STATIC, symmetric=False)
TUNING = BlockTuning(epochs=3, learning_rate=2e-3, batch=1)
KEPT = BlockTuning(epochs=1, learning_rate=1e3)
"""Steps so large that the start is kept."""
METHOD = Tuned(INNER, TUNING, dense_inputs=True, round_inputs=True)


def states(model: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found: tuple[Tensor, ...] = model(TOKENS, output_hidden_states=True).hidden_states
    return found


def scales(model: nn.Module) -> dict[str, float]:
    return {name: part.get_buffer("scale").item() for name, part in static_quantizers(model).items()}


@pytest.mark.parametrize("format", [STATIC, WITH_ZERO])
def test_the_gradient_of_a_static_scale_is_that_of_its_formula(format: ActivationFormat) -> None:
    """d/ds of (code − zero) s in float64: code − zero, less x / s where x is within the range."""
    quantizer = ActivationQuantizer(format)
    scale, zero = torch.tensor(0.31, requires_grad=True), torch.tensor(1.0)
    quantizer.register_buffer("scale", scale)
    if not format.symmetric:
        quantizer.register_buffer("zero", zero)
    x, pull = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0)).double()
    quantizer(x.float()).backward(pull.float())
    place = x / 0.31 + (0 if format.symmetric else 1)
    code, offset = place.round().clamp(-4, 3), 0 if format.symmetric else 1
    inside = (place.round() >= -4) & (place.round() <= 3)
    expected = ((code - offset - torch.where(inside, x / 0.31, 0)) * pull).sum()
    assert scale.grad is not None
    assert (~inside).any()
    torch.testing.assert_close(scale.grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", [STATIC, WITH_ZERO, replace(STATIC, search_windows=1)])
def test_what_is_tuned_is_what_is_kept(format: ActivationFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of each block on the window held out, on the model as it is in the end."""
    found: list[TuningResult] = []
    tune = BlockTuning.tune

    def noting(self: BlockTuning, block: BlockView, targets: HiddenStates) -> TuningResult:
        found.append(tune(self, block, targets))
        return found[-1]

    monkeypatch.setattr(BlockTuning, "tune", noting)
    model, dense = with_outliers("llama"), with_outliers("llama")
    Activations(METHOD, format).compress(model, TEXT)
    assert all(0 < result.after <= result.before for result in found)
    assert any(result.epoch for result in found)
    first = (states(model)[1] - states(dense)[1])[-1].square().mean().item()
    assert first == pytest.approx(found[0].after, rel=1e-3)
    for block in walk(dense, TOKENS):
        if block.index == 1:  # its targets are those of the dense model, behind dense blocks
            target = list(block.outputs())[-1]
    for block in walk(model, TOKENS):
        if block.index == 1:
            output = list(block.outputs())[-1]
    assert (output - target).square().mean().item() == pytest.approx(found[1].after, rel=1e-3)


def test_scales_move_and_are_whole_numbers_where_they_must() -> None:
    kept, tuned = with_outliers("llama"), with_outliers("llama")
    Activations(replace(METHOD, tuning=KEPT), WITH_ZERO).compress(kept, TEXT)
    Activations(METHOD, WITH_ZERO).compress(tuned, TEXT)
    before, after = scales(kept), scales(tuned)
    assert list(before) == list(after)
    assert all(after.values())
    assert sum(after[name] != before[name] for name in before) >= len(before) / 2
    assert all(part.get_buffer("zero").item().is_integer() for part in static_quantizers(tuned).values())


def test_without_steps_the_first_block_has_the_scales_of_a_search() -> None:
    format = replace(STATIC, search_windows=1)
    kept, searched = with_outliers("llama"), with_outliers("llama")
    Activations(replace(METHOD, tuning=KEPT), format).compress(kept, TEXT)
    Activations(INNER, format).compress(searched, TEXT)
    first = [name for name in scales(searched) if ".layers.0." in name]
    assert len(first) == 7
    expected = [scales(searched)[name] for name in first]
    assert [scales(kept)[name] for name in first] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("round_inputs", [False, True])
def test_inputs_of_a_token_s_own_scale_are_rounded_if_asked(round_inputs: bool) -> None:
    """Dynamic inputs have nothing to train: tuning sees them, or does not."""
    seen: list[bool] = []

    class Noting(CodedInputs):
        def attached(self, block: BlockView, layers: Any) -> Any:
            seen.append(True)
            return super().attached(block, layers)

    model = tiny_model("llama")
    method = replace(METHOD, round_inputs=round_inputs)
    method.compress(model, TEXT, Context(inputs=Noting(ActivationFormat(4))))
    assert len(seen) == (2 if round_inputs else 0)
    assert not any(isinstance(part, ActivationQuantizer) for part in model.modules())


def test_channels_that_fire_are_chosen_before_tuning() -> None:
    """So those of the first block are those for weights that are not tuned."""
    masks = []
    for inner in (METHOD, INNER):
        model = tiny_model("llama")
        SpikeLLM(inner, NeuronFormat(3, 2), share=0.2).compress(model, TEXT)
        masks.append([inputs.mask() for _, inputs in spiking_layers(model)])
    assert all(torch.equal(tuned, plain) for tuned, plain in zip(*(each[:7] for each in masks), strict=True))
    assert all(mask.any() for mask in masks[0])
