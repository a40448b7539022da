"""Repacked codes: against integers of Python, sizes, and values that are refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinq import Grid, QuantizedTensor, RepackedTensor
from sinq.formats.base import rebuilt, stored_as
from sinq.formats.packing import unpack
from sinq.formats.repacked import WORDS, Repacked, from_words, to_words

BITS = {5: 3, 3: 2}


def value(levels: int, rows: int = 6, columns: int = 32) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(levels)
    codes = torch.randint(levels, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = torch.rand(rows, columns // 16, generator=generator) + 0.1
    zero = torch.randint(levels, (rows, columns // 16), generator=generator).float()
    return QuantizedTensor.store(codes, Grid(BITS[levels], 16), scale, zero)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([3, 5]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_words_are_numbers_whose_digits_are_codes(levels: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(levels, (rows, columns), generator=generator, dtype=torch.uint8)
    digits, bits = WORDS[levels]
    packed = to_words(codes, levels)
    assert torch.equal(from_words(packed, levels, (rows, columns)), codes)
    flat = codes.flatten().tolist()
    expected = [
        sum(code * levels**k for k, code in enumerate(flat[start : start + digits]))
        for start in range(0, len(flat), digits)
    ]
    assert unpack(packed, bits, (len(expected),)).tolist() == expected


@pytest.mark.parametrize(("levels", "bits"), [(5, 7 / 3), (3, 8 / 5)])
def test_sizes_are_those_of_the_words(levels: int, bits: float) -> None:
    planes = value(levels, 48, 480)
    repacked = RepackedTensor.of(planes, levels)
    of_codes = 8 * repacked.tensors["codes"].nbytes / (48 * 480)
    assert of_codes == pytest.approx(bits, rel=1e-3)
    assert (
        planes.nbytes - repacked.nbytes == planes.tensors["codes"].nbytes - repacked.tensors["codes"].nbytes
    )
    assert repacked.bits_per_weight == pytest.approx(bits + 2, rel=1e-3)  # scale and zero of 16


@pytest.mark.parametrize("levels", [3, 5])
def test_it_stands_for_the_same_matrix(levels: int) -> None:
    planes = value(levels)
    repacked = RepackedTensor.of(planes, levels)
    assert torch.equal(repacked.dequantize(), planes.dequantize())
    assert torch.equal(repacked.core.dequantize(), planes.dequantize())
    assert repacked.group_size == 16
    again = rebuilt(stored_as(repacked), repacked.state_dict())
    assert torch.equal(again.dequantize(), planes.dequantize())
    assert "codes" not in repacked.tunable()


def with_codes(codes: Tensor) -> None:
    repacked = RepackedTensor.of(value(5), 5)
    repacked.with_tensors({"codes": codes})


def test_words_that_stand_for_no_codes_are_refused() -> None:
    codes = RepackedTensor.of(value(5), 5).tensors["codes"].clone()
    codes[0] |= 127
    with pytest.raises(ValueError, match=r"codes has a word 127; words are below 125"):
        with_codes(codes)
    with pytest.raises(ValueError, match="codes"):
        with_codes(codes[:-1])


def test_formats_that_are_not_possible_are_named() -> None:
    for levels in (0, 2, 4, 9):
        with pytest.raises(ValueError, match=f"codes of {levels} levels are not repacked; those of 5, 3 are"):
            Repacked(Grid(3), levels)
    with pytest.raises(ValueError, match="5 levels are more than the 4 of 2-bit g64"):
        Repacked(Grid(2), 5)


def test_a_group_that_does_not_divide_is_shrunk() -> None:
    format = Repacked(Grid(3, 64), 5)
    assert format.incompatibility((8, 96)) is not None
    assert format.shrunk((8, 96)) == replace(format, grid=Grid(3, 48))
    assert format.label == "5 levels g64"
