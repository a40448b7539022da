"""Bit planes: products equal those of integers, and numbers that do not fit are refused."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sinq.formats.bitplanes import BitPlanes, popcount, set_bits


def whole_numbers(rows: int, columns: int, bits: int, signed: bool, seed: int) -> Tensor:
    """Random numbers of all bits, a third of them the extremes."""
    generator = torch.Generator().manual_seed(seed)
    low = -(2 ** (bits - 1)) if signed else 0
    shape = (rows, columns)
    numbers = torch.randint(low, low + 2**bits, shape, generator=generator)
    ends = low + (2**bits - 1) * torch.randint(0, 2, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 1 / 3, ends, numbers)


@settings(deadline=None, max_examples=150)
@given(
    st.tuples(st.integers(1, 8), st.booleans()),
    st.tuples(st.integers(1, 8), st.booleans()),
    st.tuples(st.integers(0, 5), st.integers(1, 200), st.integers(1, 7)),
    st.integers(0, 1000),
)
def test_products_are_those_of_integers(
    left: tuple[int, bool], right: tuple[int, bool], shape: tuple[int, int, int], seed: int
) -> None:
    tokens, columns, rows = shape
    x = whole_numbers(tokens, columns, *left, seed)
    w = whole_numbers(rows, columns, *right, seed + 1)
    found = BitPlanes.of(x, *left).product(BitPlanes.of(w, *right))
    assert torch.equal(found, x @ w.T)


def test_five_levels_need_three_planes() -> None:
    """ABQ-LLM's balanced 2-bit weights have codes 0 … 4."""
    codes = torch.arange(100).reshape(4, 25) % 5
    x = whole_numbers(3, 25, 8, True, 0)
    assert torch.equal(BitPlanes.of(x, 8, True).product(BitPlanes.of(codes, 3, False)), x @ codes.T)
    with pytest.raises(ValueError, match="numbers 0 to 4 have more than 2 unsigned bits"):
        BitPlanes.of(codes, 2, False)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_popcount_is_pythons(numbers: list[int]) -> None:
    expected = [(number % 2**64).bit_count() for number in numbers]
    assert popcount(torch.tensor(numbers)).tolist() == expected


@given(st.lists(st.integers(-16, 15), min_size=1), st.integers(5, 8))
def test_set_bits_are_those_of_twos_complement(numbers: list[int], bits: int) -> None:
    expected = sum((number % 2**bits).bit_count() for number in numbers)
    assert set_bits(torch.tensor(numbers, dtype=torch.int8), bits) == expected


@pytest.mark.parametrize(
    ("numbers", "bits", "signed", "message"),
    [
        ([[128]], 8, True, "numbers 128 to 128 have more than 8 signed bits"),
        ([[-1]], 8, False, "numbers -1 to -1 have more than 8 unsigned bits"),
        ([[0]], 9, False, "bits=9 is not possible; it must be between 1 and 8"),
        ([[0]], 0, False, "bits=0 is not possible; it must be between 1 and 8"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    numbers: list[list[int]], bits: int, signed: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BitPlanes.of(torch.tensor(numbers), bits, signed)
