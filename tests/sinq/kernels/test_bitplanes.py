"""Products of bit planes on a processor: integers against brute force, floats against float64, refusals."""

import os
import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from numba import njit
from torch import Tensor

from sinq import SINQ, Grid, Levels, QuantizedTensor
from sinq.formats.activations import ActivationFormat, QuantizedActivations
from sinq.formats.bitplanes import BitPlanes
from sinq.formats.grid import BITS
from sinq.kernels.cpu import bitplanes, planes
from sinq.kernels.cpu.dots import ROWS
from sinq.kernels.integer import Products, dequantized, integer_kernel_of, integer_product
from tests.conftest import ROOT

CPU = torch.device("cpu")
TOLERANCE = 1e-5


def multiplied(value: QuantizedTensor, x: QuantizedActivations, bias: Tensor | None = None) -> Tensor:
    choice = integer_kernel_of(value, x.group_size, CPU, Products.bitplanes)
    assert (choice.kernel, choice.refusal) == ("cpu_bitplanes", None)
    return integer_product(value, x, bias, products=Products.bitplanes)


def extremes_often(draw: Any, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    codes = torch.randint(low, high + 1, shape, generator=generator)
    ends = torch.randint(0, 2, shape, generator=generator) * (high - low) + low
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return torch.where(torch.rand(shape, generator=generator) < share, ends, codes)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_integers_are_those_of_brute_force(data: st.DataObject) -> None:
    """All scales are 1, so that the result is a sum of products of integers, below 2^24 and so exact."""
    draw = data.draw
    bits, input_bits = draw(st.sampled_from(BITS)), draw(st.integers(2, 8))
    smaller = draw(st.integers(2, 70))
    larger = smaller * draw(st.integers(1, 3))
    columns, rows = larger * draw(st.integers(1, 2)), draw(st.integers(1, 70))
    group, input_group = (smaller, larger) if draw(st.booleans()) else (larger, smaller)
    tokens, symmetric = draw(st.sampled_from([0, 1, 2, 9, 17])), draw(st.booleans())
    codes = extremes_often(draw, (rows, columns), 0, 2**bits - 1)
    zeros = extremes_often(draw, (rows, columns // group), -20, 2**bits)
    low, high = -(2 ** (input_bits - 1)), 2 ** (input_bits - 1) - 1
    q = extremes_often(draw, (tokens, columns), low, high)
    v = extremes_often(draw, (tokens, columns // input_group), low, high)
    value = QuantizedTensor.store(
        codes.to(torch.uint8),
        Grid(bits, group, symmetric=symmetric),
        torch.ones(rows, columns // group),
        None if symmetric else zeros.float(),
    )
    if symmetric:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    has_zero = draw(st.booleans())
    x = QuantizedActivations(
        q.to(torch.int8), torch.ones(v.shape), v.float() if has_zero else None, bits=input_bits
    )
    left = q - (v.repeat_interleave(input_group, 1) if has_zero else 0)
    right = codes - zeros.repeat_interleave(group, 1)
    assert torch.equal(multiplied(value, x).long(), left @ right.T)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_innermost_loops_count_what_integers_sum(bits: int) -> None:
    """Every number of planes of weights, seven too, which no grid has, in any number of words."""
    pack, count = planes.packer(), planes.counter(bits)

    @njit
    def run(x, weights, words, planes_of_w, packed_x, packed_w, out):  # type: ignore[no-untyped-def]
        for word in range(words):
            pack(x + 32 * word, bits, packed_x + 4 * word, words)
            for row in range(ROWS):
                at = packed_w + 4 * (word * ROWS + row)
                pack(weights + 32 * (row * words + word), planes_of_w, at, words * ROWS)
        count(packed_w, packed_x, planes_of_w, words, out)

    generator = torch.Generator().manual_seed(bits)
    for planes_of_w in range(1, 9):
        words = 1 + planes_of_w % 3
        x = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (1, 32 * words), generator=generator)
        w = torch.randint(0, 2**planes_of_w, (ROWS, 32 * words), generator=generator, dtype=torch.uint8)
        packed_x = torch.empty(bits, words, dtype=torch.int32)
        packed_w = torch.empty(planes_of_w, words, ROWS, dtype=torch.int32)
        out = torch.empty(ROWS, dtype=torch.int32)
        addresses = [each.data_ptr() for each in (packed_x, packed_w, out)]
        codes = x.to(torch.int8)
        run(codes.data_ptr(), w.data_ptr(), words, planes_of_w, *addresses)
        expected = BitPlanes.of(x, bits, True).product(BitPlanes.of(w, planes_of_w, False))
        assert torch.equal(out.long(), expected[0])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
@pytest.mark.parametrize("format", [ActivationFormat(3), ActivationFormat(5, group_size=16, symmetric=False)])
def test_floats_are_those_of_float64(bits: int, auxiliary_bits: int, format: ActivationFormat) -> None:
    generator = torch.Generator().manual_seed(bits)
    matrix = torch.randn(45, 96, generator=generator)
    value = QuantizedTensor.round(matrix, Grid(bits, 48, auxiliary_bits=auxiliary_bits))
    x, bias = torch.randn(2, 3, 96, generator=generator), torch.randn(45, generator=generator)
    rounded = format.quantize(x, *format.scales(*format.extremes(x)))
    exact = dequantized(value, rounded, bias, torch.float64)
    assert (multiplied(value, rounded, bias) - exact).norm() <= TOLERANCE * exact.norm()


def test_they_equal_products_of_bytes_to_the_last_bit() -> None:
    """Both sum the same integers, and apply scales by the same code, where more than a few tokens come."""
    value = SINQ(Grid(3, 64)).quantize(torch.randn(70, 256, generator=torch.Generator().manual_seed(0)), None)
    x, format = torch.randn(20, 256, generator=torch.Generator().manual_seed(1)), ActivationFormat(5)
    rounded = format.quantize(x, *format.scales(*format.extremes(x)))
    assert torch.equal(multiplied(value.core, rounded), integer_product(value.core, rounded))


@pytest.mark.parametrize("tokens", [1, 5])
def test_many_groups_of_many_rows(tokens: int) -> None:
    """More groups and rows than a square of turned scales has, and groups of inputs that divide them."""
    matrix = torch.randn(77, 720, generator=torch.Generator().manual_seed(0))
    value, format = QuantizedTensor.round(matrix, Grid(4, 40)), ActivationFormat(4, group_size=20)
    x = torch.randn(tokens, 720, generator=torch.Generator().manual_seed(1))
    rounded = format.quantize(x, *format.scales(*format.extremes(x)))
    exact = dequantized(value, rounded, None, torch.float64)
    assert (multiplied(value, rounded) - exact).norm() <= TOLERANCE * exact.norm()


def test_long_groups_do_not_overflow() -> None:
    """The largest sums: 2^15 columns of the largest codes."""
    columns = 2**15
    codes = torch.full((1, columns), 255, dtype=torch.uint8)
    value = QuantizedTensor.store(codes, Grid(8, columns), torch.ones(1, 1), torch.zeros(1, 1))
    for code in (-128, 127):
        q = torch.full((1, columns), code, dtype=torch.int8)
        assert multiplied(value, QuantizedActivations(q, torch.ones(1, 1))).item() == columns * 255 * code


class TestPreparedPlanes:
    grid = Grid(4, 32)

    def test_they_are_made_once(self) -> None:
        codes = QuantizedTensor.round(torch.randn(8, 64), self.grid).tensors["codes"]
        first = bitplanes.prepared(codes, 4, (8, 64), 32)
        assert bitplanes.prepared(codes, 4, (8, 64), 32) is first
        assert bitplanes.prepared(codes, 4, (8, 64), 16) is not first
        assert bitplanes.prepared(codes.clone(), 4, (8, 64), 32) is not first

    @pytest.mark.parametrize("write", ["copy_", "data"])
    def test_they_follow_what_is_written(self, write: str) -> None:
        value, other = (QuantizedTensor.round(torch.randn(8, 64) + shift, self.grid) for shift in (0, 9))
        format, x = ActivationFormat(4), torch.randn(2, 64)
        rounded = format.quantize(x, *format.scales(*format.extremes(x)))
        multiplied(value, rounded)
        for name, tensor in value.tensors.items():
            if write == "data":
                tensor.data = other.tensors[name].clone()
            else:
                tensor.copy_(other.tensors[name])
        assert torch.equal(multiplied(value, rounded), multiplied(other, rounded))

    def test_tensors_of_inference_mode_are_taken_too(self) -> None:
        with torch.inference_mode():
            value = QuantizedTensor.round(torch.randn(8, 64), self.grid)
            format, x = ActivationFormat(4), torch.randn(2, 64)
            rounded = format.quantize(x, *format.scales(*format.extremes(x)))
            exact = dequantized(value, rounded, None, torch.float64)
            assert (multiplied(value, rounded) - exact).norm() <= TOLERANCE * exact.norm()

    def test_they_are_freed_with_the_codes(self) -> None:
        before = len(bitplanes._prepared)
        codes = QuantizedTensor.round(torch.randn(8, 64), self.grid).tensors["codes"]
        bitplanes.prepared(codes, 4, (8, 64), 32)
        assert len(bitplanes._prepared) == before + 1
        del codes
        assert len(bitplanes._prepared) == before


def test_what_is_no_single_matrix_of_codes_is_refused() -> None:
    value = QuantizedTensor.round(torch.randn(8, 64), Grid(4, 32, levels=Levels.nf4))
    choice = integer_kernel_of(value, 0, CPU, Products.bitplanes)
    assert choice.kernel == "reference"
    assert choice.refusal is not None
    assert "levels=nf4 is a table" in choice.refusal


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
def test_other_processors_count_the_same(processor: str) -> None:
    """Compiled without AVX-512 (tables of nibbles), and without AVX and popcnt."""
    chosen = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", __file__, "-k", "brute or innermost"]
    ended = subprocess.run(
        words, env=os.environ | chosen, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout
