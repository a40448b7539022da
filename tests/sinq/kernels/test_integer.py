"""Products of integers on a processor: integers against brute force, floats against float64, and refusals."""

from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numba import njit
from torch import Tensor

from sinq import Grid, Kernel, Levels, QuantizedTensor, SparseOutliers, using
from sinq.formats.activations import ActivationFormat, QuantizedActivations
from sinq.formats.grid import BITS
from sinq.kernels.cpu import dots, integer, tiles
from sinq.kernels.cpu import linear as cpu_linear
from sinq.kernels.integer import LARGEST_GROUP, dequantized, integer_kernel_of, integer_product

CPU = torch.device("cpu")
TOLERANCE = 1e-5
BYTES = ActivationFormat(8)


def quantized(grid: Grid, rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    return QuantizedTensor.round(torch.randn(rows, columns, generator=generator) + 0.3, grid)


def inputs(tokens: int, columns: int, format: ActivationFormat = BYTES) -> QuantizedActivations:
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)) + 0.2
    return format.quantize(x, *format.scales(*format.extremes(x)))


def error(value: QuantizedTensor, x: QuantizedActivations, bias: Tensor | None = None) -> float:
    """Error against the definition in float64, relative to it or to the size of sums of that many terms."""
    exact = dequantized(value, x, bias, torch.float64)
    terms = x.dequantize(torch.float64).square() @ value.dequantize(torch.float64).T.square()
    size = max(terms.sqrt().norm(), exact.norm()).clamp_min(1e-30)
    both = integer_product(value, x, bias), by_vectors(value, x, bias)
    assert all((found.dtype, found.shape) == (torch.float32, exact.shape) for found in both)
    return float(max((found.double() - exact).norm() / size for found in both))


def by_vectors(value: QuantizedTensor, x: QuantizedActivations, bias: Tensor | None = None) -> Tensor:
    """The product where the processor has no matrix unit, or its use is not permitted."""
    with patch.object(tiles, "permitted", return_value=False):
        return integer_product(value, x, bias)


def extreme_codes(draw: Any, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Random codes, of which many are the extremes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    codes = torch.randint(low, high + 1, shape, generator=generator)
    ends = torch.randint(0, 2, shape, generator=generator) * (high - low) + low
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return torch.where(torch.rand(shape, generator=generator) < share, ends, codes)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_integers_are_those_of_brute_force(data: st.DataObject) -> None:
    """All scales are 1, so that the result is a sum of products of integers, below 2^24 and so exact."""
    draw = data.draw
    bits, smaller = draw(st.sampled_from(BITS)), 8 * draw(st.integers(1, 5))
    larger = smaller * draw(st.integers(1, 3))
    columns, rows = larger * draw(st.integers(1, 2)), draw(st.integers(1, 70))
    group, input_group = (smaller, larger) if draw(st.booleans()) else (larger, smaller)
    tokens = draw(st.sampled_from([0, 1, 2, 3, 7, 8, 9, 17, 40]))
    codes = extreme_codes(draw, (rows, columns), 0, 2**bits - 1)
    symmetric = draw(st.booleans())
    zeros = extreme_codes(draw, (rows, columns // group), -20, 2**bits)
    q = extreme_codes(draw, (tokens, columns), -128, 127)
    v = extreme_codes(draw, (tokens, columns // input_group), -128, 127)
    value = QuantizedTensor.store(
        codes.to(torch.uint8),
        Grid(bits, group, symmetric=symmetric),
        torch.ones(rows, columns // group),
        None if symmetric else zeros.float(),
    )
    if symmetric:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    has_zero = draw(st.booleans())
    x = QuantizedActivations(q.to(torch.int8), torch.ones(v.shape), v.float() if has_zero else None)
    left = q - (v.repeat_interleave(input_group, 1) if has_zero else 0)
    right = codes - zeros.repeat_interleave(group, 1)
    assert integer_kernel_of(value, input_group, CPU).kernel == "cpu_int8"
    expected = left @ right.T
    for found in (integer_product(value, x), by_vectors(value, x)):
        if columns * 383 * 275 < 2**24:
            assert torch.equal(found.long(), expected)
        else:
            torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=32)


def test_torchs_products_by_the_matrix_unit_stay_right() -> None:
    """Both change the registers' shapes; torch's halves are multiplied before and after ours."""
    value, x = quantized(Grid(8, 32), 64, 128), inputs(32, 128)
    left, right = torch.randn(64, 256).bfloat16(), torch.randn(64, 256).bfloat16()
    expected = left @ right.T
    for _ in range(3):
        first = integer_product(value, x)
        assert torch.equal(left @ right.T, expected)
        assert torch.equal(integer_product(value, x), first)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_bytes_are_multiplied_exactly(data: st.DataObject) -> None:
    """Both forms of the innermost loop against int64, the general one on any processor."""
    fours, stride = data.draw(st.integers(1, 40)), 4 * data.draw(st.integers(40, 50))
    weights = extreme_codes(data.draw, (dots.ROWS, 4 * fours), 0, 255)
    entries = extreme_codes(data.draw, (dots.TOKENS, stride), -128, 127)
    laid_out = weights.reshape(dots.ROWS, fours, 4).transpose(0, 1).to(torch.uint8).contiguous().numpy()
    x, expected = entries.to(torch.int8).numpy(), entries[:, : 4 * fours] @ weights.T
    for multiply in (general, used):
        out = np.zeros((dots.TOKENS, dots.ROWS), np.int32)
        multiply(laid_out, x, stride, fours, out)
        assert np.array_equal(out, expected.numpy())


general_tile, used_tile = dots.tile(False), dots.tile(dots.HAS_VNNI)


@njit
def general(weights, x, stride, count, out):  # type: ignore[no-untyped-def]
    general_tile(weights.ctypes.data, x.ctypes.data, stride, count, out.ctypes.data)


@njit
def used(weights, x, stride, count, out):  # type: ignore[no-untyped-def]
    used_tile(weights.ctypes.data, x.ctypes.data, stride, count, out.ctypes.data)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_way_to_store_scales_and_zeros(bits: int, auxiliary_bits: int, symmetric: bool) -> None:
    value = quantized(Grid(bits, 32, symmetric=symmetric, auxiliary_bits=auxiliary_bits), 37, 96)
    for tokens in (1, integer.FEW + 1, 19):
        for asymmetric in (False, True):
            x = inputs(tokens, 96, ActivationFormat(8, symmetric=not asymmetric))
            assert error(value, x, torch.randn(37)) < TOLERANCE


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("group", "input_group"), [(8, 192), (192, 8), (64, 32), (32, 64), (24, 24), (64, 0)]
)
def test_groups_that_nest(bits: int, group: int, input_group: int) -> None:
    for tokens in (1, 5, 8):
        for symmetric in (True, False):
            format = ActivationFormat(bits, group_size=input_group, symmetric=symmetric)
            assert error(quantized(Grid(4, group), 33, 192), inputs(tokens, 192, format)) < TOLERANCE


def test_zeros_need_not_be_whole() -> None:
    value = quantized(Grid(4, 32), 20, 64)
    zero = torch.randn(20, 2, generator=torch.Generator().manual_seed(3)) * 5 + 8
    moved = value.with_tensors({"zero": zero.half()})
    for tokens in (1, 9):
        assert error(moved, inputs(tokens, 64, ActivationFormat(8, symmetric=False))) < TOLERANCE


def test_tiny_weights_have_an_exponent() -> None:
    value = QuantizedTensor.round(torch.randn(7, 64) * 1e-6, Grid(group_size=32))
    assert "scale_exponent" in value.tensors
    for tokens in (1, 9):
        assert error(value, inputs(tokens, 64)) < TOLERANCE


def test_digits_do_not_cancel_in_long_sums() -> None:
    """Inputs far from 0 and 8-bit codes around 128: sums are much larger than results."""
    value = QuantizedTensor.round(torch.randn(40, 2048), Grid(8, 2048, symmetric=True))
    x = QuantizedActivations(torch.full((16, 2048), 127, dtype=torch.int8), torch.ones(16, 1))
    exact = dequantized(value, x, None, torch.float64)
    assert (integer_product(value, x) - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 3), (2, 0, 3), (3, 1, 7)])
def test_any_leading_shape(leading: tuple[int, ...]) -> None:
    value, bias = quantized(Grid(4, 32), 5, 64), torch.randn(5)
    format = ActivationFormat(8, symmetric=False)
    x = torch.randn(*leading, 64)
    rounded = format.quantize(x, *format.scales(*format.extremes(x)))
    found = integer_product(value, rounded, bias)
    assert found.shape == (*leading, 5)
    torch.testing.assert_close(found, dequantized(value, rounded, bias, torch.float32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_is_rounded_once(dtype: torch.dtype) -> None:
    value, x, bias = quantized(Grid(4, 32), 5, 64), inputs(9, 64), torch.randn(5, dtype=dtype)
    found = integer_product(value, x, bias, dtype)
    assert torch.equal(found, (integer_product(value, x) + bias.float()).to(dtype))


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "SMALL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for rows in (1, 33, 100):
            for tokens in (1, 20):
                assert error(quantized(Grid(), rows, 128), inputs(tokens, 128)) < TOLERANCE
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_not_finite_does_not_come_out_finite(bad: float, tokens: int, symmetric: bool) -> None:
    x, format = torch.randn(tokens, 128), ActivationFormat(8, symmetric=symmetric)
    x[1, 70] = bad
    y = integer_product(quantized(Grid(), 5, 128), format.quantize(x, *format.scales(*format.extremes(x))))
    assert y[0].isfinite().all()
    assert not y[1].isfinite().any()


def test_what_no_kernel_takes_is_named() -> None:
    weight = torch.randn(32, 64)
    plain = QuantizedTensor.round(weight, Grid(group_size=32))
    tiles = QuantizedTensor.store(
        plain.codes(), Grid(group_size=32, tiling=2), plain.scale(), plain.zero(), col_scale=torch.ones(1, 64)
    )  # type: ignore[arg-type]
    trained = quantized(Grid(), 5, 64)
    trained.tensors["scale"].requires_grad_()
    for value, group, reason in (
        (QuantizedTensor.round(weight, Grid(levels=Levels.nf4)), 0, "levels=nf4 is a table"),
        (SparseOutliers.store(plain, weight, weight > 2), 0, "SparseOutliers has no product of integers"),
        (tiles, 0, "column scales stand between codes and inputs"),
        (plain, 48, "group_size=32 and activation.group_size=48 do not nest"),
        (quantized(Grid(group_size=4), 5, 64), 0, "group_size=4 is no multiple of 8"),
        (plain, 4, "activation.group_size=4 is no multiple of 8"),
        (quantized(Grid(2, 2 * LARGEST_GROUP), 1, 2 * LARGEST_GROUP), 0, "may pass 2^31"),
        (trained, 0, "asks for a gradient"),
    ):
        choice = integer_kernel_of(value, group, CPU)
        assert choice.kernel == "reference"
        assert reason in (choice.refusal or ""), choice
    with using(Kernel.reference):
        assert "kernel=reference was asked for" in (integer_kernel_of(plain, 0, CPU).refusal or "")


def test_what_is_refused_is_dequantized() -> None:
    value, x = QuantizedTensor.round(torch.randn(32, 64), Grid(levels=Levels.nf4)), inputs(3, 64)
    expected = x.dequantize() @ value.dequantize().T
    torch.testing.assert_close(integer_product(value, x), expected)


def test_inputs_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="x has 32 features; the matrix takes 64"):
        integer_product(quantized(Grid(), 5, 64), inputs(2, 32))


def test_it_is_one_node_of_a_compiled_graph() -> None:
    value = quantized(Grid(), 5, 64)

    def multiply(codes: Tensor, scale: Tensor) -> Tensor:
        return integer_product(value, QuantizedActivations(codes, scale))

    for tokens in (1, 20):
        x = inputs(tokens, 64)
        compiled = torch.compile(multiply, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x.codes, x.scale), multiply(x.codes, x.scale))
