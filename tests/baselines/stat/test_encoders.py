"""STAT on encoders, in float64: what the others stand in for is removed without a trace, biases included."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

import sinq
from baselines.dense import Dense
from baselines.stat import STAT
from baselines.stat.budget import Depth
from baselines.stat.ranking import Correction
from baselines.stat.sketch import SketchKind
from sinq import SINQ, Calibration, Grid
from sinq.model.slicing import kept_groups, slice_block, spread
from sinq.model.units import Units, find_units, macs_per_token, matrix_of
from tests.conftest import tiny_tokens
from tests.sinq.sliceable import ENCODERS, random_model

TOKENS = tiny_tokens(16, 48)
TEXT = Calibration(TOKENS)
WIDTH, HIDDEN, NEURONS = 16, 64, 128
ATTENTION, MLP = 4 * HIDDEN**2, 2 * HIDDEN * NEURONS
RELEASED = {"depth": Depth.linear, "heads_after_neurons": True, "sketch": SketchKind.none}
"""The released code for BERT."""


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(TOKENS[:4]).logits
    return found


def varied_model(name: str) -> Any:
    """A model of gains around 1: with the small ones of `random_model`, all tokens become nearly equal."""
    model = random_model(name).double()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight += 1
    return model


def layers(units: Units, *names: str) -> list[Any]:
    return [units.layer(name) for name in names]


def with_redundant_neurons(name: str) -> nn.Module:
    """The last 8 neurons of each block are copies of the first 8, with their biases."""
    model = varied_model(name)
    for units in find_units(model):
        for layer in layers(units, *units.names.up):
            for parameter in layer.parameters():
                parameter[NEURONS - 8 :] = parameter[:8]
    return model


def with_redundant_heads(name: str) -> nn.Module:
    """The last head of each block says a mixture of what the channels of the first say, in a low voice.

    It is heard all the same. The order of heads is that of norms where heads are no multiples of each other.
    """
    model = varied_model(name)
    for units in find_units(model):
        mixing = 0.02 * torch.randn(WIDTH, WIDTH).double()
        matrix_of(units.layer(units.names.output))[:, -WIDTH:] *= 20
        query, key, value = layers(units, *units.names.inputs)
        for layer, factor in ((query, None), (key, None), (value, mixing)):
            for parameter in layer.parameters():
                first = parameter[:WIDTH]
                parameter[-WIDTH:] = first if factor is None else factor @ first
    return model


@pytest.mark.parametrize("options", [{}, RELEASED], ids=["defaults", "released"])
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    ("make", "left"),
    [
        (with_redundant_neurons, ATTENTION + MLP * 120 / 128),
        (with_redundant_heads, ATTENTION * 3 / 4 + MLP),
    ],
)
def test_what_says_nothing_new_is_removed_and_costs_nothing(
    make: Any, left: float, name: str, options: dict[str, Any]
) -> None:
    dense, model, without = make(name), make(name), make(name)
    common = {"target": left / (ATTENTION + MLP), "context": 0, **options}
    STAT(Dense(), **common).compress(model, TEXT)
    assert sum(map(macs_per_token, find_units(model))) == 2 * left
    scale = logits(dense).abs().max()
    assert (logits(model) - logits(dense)).abs().max() < 1e-12 * scale
    STAT(Dense(), **common, correction=Correction.none).compress(without, TEXT)
    assert (logits(without) - logits(dense)).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("name", ENCODERS)
def test_a_sliced_encoder_is_the_one_whose_other_units_are_masked(name: str) -> None:
    model, masked = varied_model(name), varied_model(name)
    for units, other in zip(find_units(model), find_units(masked), strict=True):
        kept = kept_groups(units, [2, 0, 3], range(5, 100))
        for layer, index in (
            (other.names.output, spread(kept.heads, WIDTH)),
            (other.names.down, kept.neurons),
        ):
            columns = torch.zeros_like(matrix_of(other.layer(layer))[0])
            columns[index] = 1
            other.layer(layer).weight.mul_(columns)
        slice_block(model, units, kept)
    assert (logits(model) - logits(masked)).abs().max() < 1e-12 * logits(masked).abs().max()


@pytest.mark.parametrize("name", ENCODERS)
def test_sinq_compresses_what_is_left_and_the_whole_comes_back_from_disk(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    method = STAT(SINQ(Grid(bits=8, group_size=16)), target=0.7, chunk=16, context=0)
    report = method.compress(model, TEXT)
    inside = [part for part in report.parts if re.search(r"\.layer\.", part.name)]
    assert [part.group_size for part in inside] == [16] * 12
    assert sum(part.parameters for part in inside) == pytest.approx(0.7 * 2 * (ATTENTION + MLP), rel=0.02)
    sinq.save(model, tmp_path)
    again = sinq.load(tmp_path)
    assert type(again) is type(model)
    assert torch.equal(logits(again), logits(model))
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert "AutoModelForMaskedLM.from_pretrained" in (tmp_path / "README.md").read_text()
