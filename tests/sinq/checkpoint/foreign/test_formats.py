"""Matrices of every format, written bit by bit, come back to the last bit; what does not fit is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinq.checkpoint.foreign.awq import AWQGemm
from sinq.checkpoint.foreign.compressed_tensors import CompressedTensors
from sinq.checkpoint.foreign.gptq import GPTQ
from sinq.checkpoint.foreign.official_sinq import OfficialSINQ
from sinq.checkpoint.foreign.parts import Parts
from tests.sinq.checkpoint.foreign import writers
from tests.sinq.checkpoint.foreign.writers import Matrix


def exact(parts: Parts, matrix: Matrix) -> None:
    value = parts.value()
    assert value.shape == (matrix.rows, matrix.columns)
    assert torch.equal(value.codes().long(), torch.tensor(matrix.codes))
    assert torch.equal(value.dequantize(), matrix.dense.float())


SHAPES = st.tuples(st.sampled_from((32, 64, 96)), st.sampled_from((32, 64, 96)))
SCALES = st.sampled_from((torch.float16, torch.bfloat16, torch.float32))


@given(shape=SHAPES, bits=st.sampled_from((2, 3, 4, 8)), version=st.sampled_from((1, 2)), dtype=SCALES)
@settings(max_examples=12, deadline=None)
def test_gptq(shape: tuple[int, int], bits: int, version: int, dtype: torch.dtype) -> None:
    matrix = Matrix(*shape, bits, 32, seed=bits, scale_dtype=dtype)
    stated = GPTQ(bits, 32, version)
    exact(stated.decode("x", writers.gptq(matrix, version)), matrix)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bits_of_a_gptq_layer_are_those_of_its_words(bits: int) -> None:
    matrix = Matrix(32, 64, bits, 32, seed=0)
    exact(GPTQ(4, 128, 2).decode("x", writers.gptq(matrix)), matrix)


def test_a_zero_of_0_wraps_around_in_version_1_and_is_counted() -> None:
    matrix = Matrix(32, 64, 4, 32, seed=0)
    matrix.zero[3, 1] = 0
    parts = GPTQ(4, 32, 1).decode("x", writers.gptq(matrix, 1))
    exact(parts, matrix)
    assert parts.notes == {"wrapped_zeros": 1}


@given(shape=SHAPES, dtype=SCALES)
@settings(max_examples=8, deadline=None)
def test_awq(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = Matrix(*shape, 4, 32, seed=1, scale_dtype=dtype)
    exact(AWQGemm(32).decode("x", writers.awq(matrix)), matrix)


@given(
    rows=st.sampled_from((8, 24, 33)),
    columns=st.sampled_from((32, 64, 128)),
    bits=st.sampled_from((2, 3, 4, 5, 6, 8)),
    symmetric=st.booleans(),
    layout=st.sampled_from((writers.stream, writers.spaced)),
)
@settings(max_examples=25, deadline=None)
def test_compressed_tensors(
    rows: int, columns: int, bits: int, symmetric: bool, layout: Callable[[Any, int], list[int]]
) -> None:
    matrix = Matrix(rows, columns, bits, 16, seed=2, symmetric=symmetric)
    stated = CompressedTensors(((bits, "g16"),))
    parts = stated.decode("x", writers.compressed_tensors(matrix, layout))
    exact(parts, matrix)
    assert parts.grid.symmetric == symmetric


def test_a_layer_of_compressed_tensors_has_the_bits_that_fit_its_words() -> None:
    matrix = Matrix(16, 64, 3, 32, seed=2)
    stated = CompressedTensors(((8, "g32"), (3, "g32"), (4, "g32")))
    exact(stated.decode("x", writers.compressed_tensors(matrix)), matrix)
    with pytest.raises(ValueError, match="6 words for 64 codes, which fits no layout of 4 bits"):
        CompressedTensors(((4, "g32"),)).decode("x", writers.compressed_tensors(matrix))


def test_words_that_fit_two_layouts_are_refused() -> None:
    matrix = Matrix(16, 48, 3, 16, seed=2)
    with pytest.raises(ValueError, match="5 words for 48 codes, which fits several layouts of 3 bits"):
        CompressedTensors(((3, "g16"),)).decode("x", writers.compressed_tensors(matrix))


def test_one_scale_for_a_row_or_for_the_matrix() -> None:
    by_row = Matrix(16, 64, 4, 64, seed=2, symmetric=True)
    stated = CompressedTensors(((4, "by row"),))
    exact(stated.decode("x", writers.compressed_tensors(by_row)), by_row)
    by_row.scale[:] = by_row.scale[0, 0]
    tensors = writers.compressed_tensors(by_row) | {"weight_scale": by_row.scale[0]}
    exact(stated.decode("x", tensors), by_row)


@given(
    shape=st.tuples(st.sampled_from((8, 24, 40)), st.sampled_from((16, 48))),
    bits=st.sampled_from((2, 3, 4, 5, 6, 8)),
    dtype=SCALES,
)
@settings(max_examples=20, deadline=None)
def test_official(shape: tuple[int, int], bits: int, dtype: torch.dtype) -> None:
    matrix = Matrix(*shape, bits, 8, seed=3, scale_dtype=torch.float32 if bits == 8 else dtype)
    stated = OfficialSINQ(bits, 8, "sinq", "1D", {"x": writers.sidecar(matrix)})
    exact(stated.decode("x", writers.official(matrix)), matrix)
