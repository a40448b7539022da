"""What the Triton kernel on rounded inputs computes: integers by brute force, floats against float64."""

import pytest
import torch
from torch import Tensor

from sinq.formats.activations import ActivationFormat, QuantizedActivations
from sinq.formats.grid import BITS, Grid
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.integer import dequantized, integer_kernel_of

pytest.importorskip("triton")

from sinq.kernels.dispatch import Kernel, using
from sinq.kernels.triton.integer import product, refusal

pytestmark = pytest.mark.interpreted  # see tests/interpreter.py

BYTES = ActivationFormat(8)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def quantized(grid: Grid, rows: int, columns: int, size: float = 1.0) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(0)
    return QuantizedTensor.round((torch.randn(rows, columns, generator=generator) + 0.3) * size, grid).to(
        DEVICE
    )


def inputs(tokens: int, columns: int, format: ActivationFormat = BYTES) -> QuantizedActivations:
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)).to(DEVICE) + 0.2
    return format.quantize(x, *format.scales(*format.extremes(x)))


def assert_product(value: QuantizedTensor, x: QuantizedActivations, bias: Tensor | None = None) -> None:
    found = product(value, x, bias, torch.float32)
    exact = dequantized(value, x, bias, torch.float64)
    assert (found.dtype, found.shape) == (torch.float32, exact.shape)
    assert (found.double() - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [1, 19])
def test_integers_are_those_of_brute_force(bits: int, tokens: int) -> None:
    """All scales are 1, and sums are below 2^24; a third of the codes are the extremes."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (37, 96), generator=generator)
    q, v = (torch.randint(-128, 128, (tokens, count), generator=generator) for count in (96, 3))
    zeros = torch.randint(-9, 2**bits, (37, 1), generator=generator)
    codes[:, :32], q[:, :32], v[:, 0] = 2**bits - 1, -128, 127
    value = QuantizedTensor.store(codes.to(torch.uint8), Grid(bits, 96), torch.ones(37, 1), zeros.float())
    x = QuantizedActivations(q.to(DEVICE, torch.int8), torch.ones(tokens, 3).to(DEVICE), v.float().to(DEVICE))
    found = product(value.to(DEVICE), x, None, torch.float32)
    assert torch.equal(found.long().cpu(), (q - v.repeat_interleave(32, 1)) @ (codes - zeros).T)


@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_way_to_store_scales_and_zeros(auxiliary_bits: int, symmetric: bool) -> None:
    value = quantized(Grid(3, 32, symmetric=symmetric, auxiliary_bits=auxiliary_bits), 45, 96)
    for asymmetric in (False, True):
        x = inputs(5, 96, ActivationFormat(8, symmetric=not asymmetric))
        assert_product(value, x, torch.randn(45).to(DEVICE))


@pytest.mark.parametrize(("group", "input_group"), [(32, 192), (192, 32), (64, 64), (96, 0)])
def test_groups_that_nest(group: int, input_group: int) -> None:
    for symmetric in (True, False):
        format = ActivationFormat(4, group_size=input_group, symmetric=symmetric)
        assert_product(quantized(Grid(4, group), 33, 192), inputs(20, 192, format))


def test_tiny_weights_and_no_tokens() -> None:
    value = quantized(Grid(4, 32), 8, 64, 1e-7)
    assert "scale_exponent" in value.tensors
    assert_product(value, inputs(3, 64))
    assert product(value, inputs(0, 64), None, torch.float32).shape == (0, 8)


def test_leading_dimensions_and_the_dtype() -> None:
    value, x = quantized(Grid(4, 32), 9, 64), inputs(6, 64)
    shaped = QuantizedActivations(x.codes.reshape(2, 3, 64), x.scale.reshape(2, 3, 1))
    found = product(value, shaped, None, torch.float16)
    assert torch.equal(found, product(value, x, None, torch.float32).half().reshape(2, 3, 9))


def test_it_is_chosen_or_says_why_not() -> None:
    device = torch.device(DEVICE)
    with using(Kernel.triton):
        assert integer_kernel_of(quantized(Grid(4, 32), 9, 64), 0, device).kernel == "triton_int8"
    assert "group_size=8 is no multiple of 32" in (refusal(quantized(Grid(4, 8), 9, 64), 64) or "")
    wide = quantized(Grid(4, 32), 9, 64)
    assert "activation.group_size=16 is no multiple of 32" in (refusal(wide, 16) or "")
