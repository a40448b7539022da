"""Bit planes by Triton: integers by brute force, and the same numbers as bytes."""

import pytest
import torch

from sinq.formats.activations import ActivationFormat, QuantizedActivations
from sinq.formats.grid import BITS, Grid
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.integer import Products, dequantized, integer_kernel_of

pytest.importorskip("triton")

from sinq.kernels.dispatch import Kernel, using
from sinq.kernels.triton.bitplanes import product, refusal

pytestmark = pytest.mark.interpreted  # see tests/interpreter.py

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("input_bits", [2, 5, 8])
def test_integers_are_those_of_brute_force(bits: int, input_bits: int) -> None:
    """All scales are 1, and sums are below 2^24; a third of the codes are the extremes."""
    generator = torch.Generator().manual_seed(bits)
    low, high = -(2 ** (input_bits - 1)), 2 ** (input_bits - 1) - 1
    codes = torch.randint(0, 2**bits, (37, 96), generator=generator)
    q, v = (torch.randint(low, high + 1, (19, count), generator=generator) for count in (96, 3))
    zeros = torch.randint(-9, 2**bits, (37, 1), generator=generator)
    codes[:, :32], q[:, :32], v[:, 0] = 2**bits - 1, low, high
    value = QuantizedTensor.store(codes.to(torch.uint8), Grid(bits, 96), torch.ones(37, 1), zeros.float())
    units, offsets = torch.ones(19, 3).to(DEVICE), v.float().to(DEVICE)
    x = QuantizedActivations(q.to(DEVICE, torch.int8), units, offsets, input_bits)
    found = product(value.to(DEVICE), x, None, torch.float32)
    assert torch.equal(found.long().cpu(), (q - v.repeat_interleave(32, 1)) @ (codes - zeros).T)


def test_floats_are_those_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    value = QuantizedTensor.round(torch.randn(45, 192, generator=generator), Grid(3, 64)).to(DEVICE)
    x, format = torch.randn(2, 3, 192, generator=generator).to(DEVICE), ActivationFormat(5)
    rounded = format.quantize(x, *format.scales(*format.extremes(x)))
    exact = dequantized(value, rounded, None, torch.float64)
    assert (product(value, rounded, None, torch.float32) - exact).norm() <= 1e-5 * exact.norm()


def test_it_is_chosen_or_says_why_not() -> None:
    value = QuantizedTensor.round(torch.randn(9, 64), Grid(4, 32)).to(DEVICE)
    with using(Kernel.triton):
        chosen = integer_kernel_of(value, 0, torch.device(DEVICE), Products.bitplanes)
    assert chosen.kernel == "triton_bitplanes"
    assert "activation.group_size=16 is no multiple of 32" in (refusal(value, 16) or "")
