"""Scales turned from rows to lanes, against numpy."""

import numpy as np
import pytest
from numba import njit

from sinq.kernels.cpu.integers import STRIP, _turn
from sinq.kernels.cpu.transposing import SIDE, transposer

transpose = transposer()


@njit
def _square(source, stride, target, target_stride):  # type: ignore[no-untyped-def]
    transpose(source, stride, target, target_stride)


def test_a_square_is_transposed() -> None:
    """Strides of both sides are longer than a row, and what lies between rows is not written."""
    source = np.random.default_rng(0).random((SIDE, SIDE + 3), np.float32)
    target = np.zeros((SIDE, SIDE + 5), np.float32)
    _square(source.ctypes.data, SIDE + 3, target.ctypes.data, SIDE + 5)
    assert np.array_equal(target[:, :SIDE], source[:, :SIDE].T)
    assert not target[:, SIDE:].any()


@pytest.mark.parametrize("count", [1, 15, 16, 17, STRIP])
@pytest.mark.parametrize(("groups", "repeats"), [(1, 1), (1, 3), (15, 2), (16, 1), (37, 1), (48, 2)])
def test_numbers_of_groups_stand_beside_those_of_other_rows(count: int, groups: int, repeats: int) -> None:
    source = np.random.default_rng(count).random((count, groups), np.float32)
    target = np.full((groups * repeats, 3, STRIP), -1, np.float32)
    _turn(source.ctypes.data, count, groups, target.ctypes.data, repeats)
    assert np.array_equal(target[:, 0, :count], source.T.repeat(repeats, axis=0))
    assert (target[:, 1:] == -1).all()
