"""Spikes: sums are codes, firing is what integers say, and one step is plain rounding."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sinq.formats.activations import ActivationFormat
from sinq.formats.spikes import NeuronFormat, accumulate, binary, fire

sizes = st.tuples(st.integers(1, 8), st.integers(1, 8))
"""Bits of a spike, and steps."""


def charges(levels: int, steps: int, seed: int, shape: tuple[int, ...] = (3, 20)) -> Tensor:
    """Random whole numbers, some beyond what the steps can fire."""
    most = steps * (levels - 1)
    return torch.randint(-2, most + 4, shape, generator=torch.Generator().manual_seed(seed))


def step_by_step(charge: int, levels: int, steps: int) -> list[int]:
    """The neuron of the paper in plain Python."""
    spikes, membrane = [], charge
    for _ in range(steps):
        spike = max(0, min(membrane, levels - 1))
        membrane -= spike
        spikes.append(spike)
    return spikes


@given(sizes, st.integers(0, 1000))
def test_sums_of_spikes_are_the_clamped_code(size: tuple[int, int], seed: int) -> None:
    levels, steps = 2 ** size[0], size[1]
    charge = charges(levels, steps, seed)
    spikes = fire(charge, levels, steps)
    assert torch.equal(spikes.sum(0), charge.clamp(0, steps * (levels - 1)))
    assert spikes.min() >= 0
    assert spikes.max() < levels
    expected = [step_by_step(int(each), levels, steps) for each in charge.flatten()]
    assert spikes.flatten(1).T.tolist() == expected


@pytest.mark.parametrize(("levels", "steps", "most"), [(16, 2, 30), (16, 4, 60), (4, 2, 6), (8, 2, 14)])
def test_each_step_after_the_first_costs_a_level(levels: int, steps: int, most: int) -> None:
    """The codes that the card found to be lost: 31 of 16 levels in two steps, 61 to 63 in four …"""
    codes = torch.arange(levels * steps)
    assert torch.equal(fire(codes, levels, steps).sum(0), codes.clamp_max(most))


def test_a_potential_that_is_not_whole_keeps_the_rest() -> None:
    assert fire(torch.tensor([2.75, -0.5, 9.0]), 4, 2).T.tolist() == [[2.0, 0.0], [0.0, 0.0], [3.0, 3.0]]


@given(sizes, st.integers(0, 1000))
def test_binary_spikes_have_the_same_sums(size: tuple[int, int], seed: int) -> None:
    levels, steps = 2 ** size[0], size[1]
    spikes = fire(charges(levels, steps, seed), levels, steps)
    ones = binary(spikes, levels)
    assert ones.dtype == torch.bool
    assert len(ones) == steps * (levels - 1)
    assert torch.equal(ones.sum(0), spikes.sum(0))


@settings(deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 1000))
def test_firing_is_the_product_of_integers(size: tuple[int, int], seed: int) -> None:
    """In int64, and with binary spikes by nothing but additions of columns."""
    levels, steps = 2 ** size[0], size[1]
    charge = charges(levels, steps, seed)
    weight = torch.randint(-128, 128, (5, 20), generator=torch.Generator().manual_seed(seed))
    spikes = fire(charge, levels, steps)
    expected = charge.clamp(0, steps * (levels - 1)) @ weight.T
    assert torch.equal(accumulate(spikes, weight), expected)
    ones = binary(spikes, levels)
    assert torch.equal(accumulate(ones, weight), expected)
    added = torch.zeros(3, 5, dtype=torch.int64)
    for step, token, channel in ones.nonzero().tolist():
        assert ones[step, token, channel]
        added[token] += weight[:, channel]
    assert torch.equal(added, expected)


@given(st.integers(1, 8), st.integers(0, 1000))
def test_one_step_is_plain_rounding(bits: int, seed: int) -> None:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    if bits > 1:  # the smallest activation format has 2 bits
        format = ActivationFormat(bits, symmetric=False)
        plain = format.quantize(x, *format.scales(*format.extremes(x)))
        train = NeuronFormat(bits).charged(x, *format.extremes(x), 1)
        half = 2 ** (bits - 1)
        assert torch.equal(train.spikes[0], plain.codes.float() + half)
        assert torch.equal(train.dequantize(), plain.dequantize())


@given(st.integers(2, 8), st.integers(2, 6), st.integers(0, 1000))
def test_more_steps_are_nearer(bits: int, steps: int, seed: int) -> None:
    """No input is farther than half a scale from what fires for it, and the scale shrinks with the steps."""
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
    low, high = x.aminmax(dim=-1, keepdim=True)
    low, high = low.clamp_max(0), high.clamp_min(0)
    one, more = (NeuronFormat(bits).charged(x, low, high, each) for each in (1, steps))
    torch.testing.assert_close(more.scale * steps, one.scale)
    for train in (one, more):  # zero is rounded too, so that the ends may be cut by half a scale
        assert ((train.dequantize() - x).abs() <= train.scale * 1.001).all()


@pytest.mark.parametrize("is_binary", [False, True])
def test_a_product_subtracts_the_zero_of_its_columns_alone(is_binary: bool) -> None:
    """Against float64: the release subtracts it over all columns of the layer."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, 40, generator=generator) + 1, torch.randn(9, 40, generator=generator)
    columns = torch.tensor([3, 4, 20, 39])
    low, high = x.aminmax(dim=-1, keepdim=True)
    train = NeuronFormat(4, 2, is_binary).charged(x[:, columns], low.clamp_max(0), high, 2)
    expected = train.dequantize().double() @ weight[:, columns].double().T
    found = train.product(weight[:, columns])
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, "neurons.bits=9 is not possible"),
        ({"bits": 0}, "neurons.bits=0 is not possible"),
        ({"steps": 0}, "neurons.steps=0 is not possible"),
        ({"steps": 65}, "neurons.steps=65 is not possible"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuronFormat(**options)


def test_a_file_may_not_have_other_options() -> None:
    format = NeuronFormat(3, 4, True)
    assert NeuronFormat.from_json({"bits": 3, "steps": 4, "binary": True}) == format
    with pytest.raises(ValueError, match="energy"):
        NeuronFormat.from_json({"bits": 3, "energy": 1})
