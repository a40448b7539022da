"""Error of rounding on a processor, in two passes over one matrix in memory.

The first pass writes the divided weights; the second overwrites them by the errors. Between the passes torch
rounds the scales and zeros of the groups, a small fraction of the data, to their stored form: Numba has no
float16 on processors, and the stored form of a scale may depend on all the others.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.formats.grid import Grid
from sinq.formats.packing import packed_bytes
from sinq.formats.rounding import nonzero
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.cpu.arguments import FAST
from sinq.kernels.cpu.quantize import choose_range, extremes, range_limits
from sinq.kernels.cpu.threads import array, torch_threads


def rounding_error(
    weight: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    grid: Grid,
    limit: Tensor | None = None,
) -> Tensor:
    """See `sinq.kernels.quantize.rounding_error`; uniform levels with a zero-point."""
    matrix, scale, zero = _divided(weight, row_scale, col_scale, grid, limit)
    shape = (weight.shape[0], weight.shape[1])
    codeless = torch.empty(packed_bytes(weight.numel(), grid.bits), dtype=torch.uint8)  # never read
    stored = QuantizedTensor.store_packed(
        codeless, shape, grid, scale, zero, row_scale=row_scale, col_scale=col_scale
    )
    return _rounded_in_place(matrix, weight, scale, zero, stored)


def _divided(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, limit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return W / (row ⊗ col), cut at ± limit if there is a limit, and the scale and zero of its groups."""
    rows, columns = weight.shape
    groups = columns // grid.group_size
    row = torch.ones(1, groups) if row_scale is None else row_scale
    col = torch.ones(1, columns) if col_scale is None else col_scale
    matrix = np.empty((rows, columns), np.float32)
    scale, zero = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    with torch_threads():
        _divide(array(weight), array(row), array(col), matrix)
        if limit is not None:
            inverses = (array(1 / row), array(1 / col))
            _cut(array(weight), array(row), array(col), *inverses, array(limit.reshape(rows, groups)), matrix)
        _ranges(matrix, np.float32(2**grid.bits - 1), range_limits(grid), scale, zero)
    return torch.from_numpy(matrix), nonzero(torch.from_numpy(scale)), torch.from_numpy(zero)


def _rounded_in_place(
    matrix: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, stored: QuantizedTensor
) -> Tensor:
    """Overwrite divided weights by the error of W, rounded with scale and zero and read back as stored."""
    step, offset, col = stored.scale(), stored.zero(), stored.col_scale()
    assert isinstance(offset, Tensor)
    column = np.ones((1, weight.shape[1]), np.float32) if col is None else array(col)
    top = np.float32(2**stored.grid.bits - 1)
    with torch_threads():
        _errors(
            array(weight), array(scale), array(zero), array(step), array(offset), column, top, matrix.numpy()
        )
    return matrix


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _divide(weight, row, col, matrix):  # type: ignore[no-untyped-def]
    rows, groups = len(weight), row.shape[1]
    size = weight.shape[1] // groups
    for i in prange(rows):
        columns, factors = col[i * len(col) // rows], row[i % len(row)]
        for group in range(groups):
            values, divisor, out = _slices(group, size, weight[i], columns, matrix[i])
            _divide_group(values, divisor, out, factors[group])


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _cut(weight, row, col, inverse_row, inverse_col, limit, matrix):  # type: ignore[no-untyped-def]
    """Cut the divided weights in the order of operations of `rounding.cut`.

    A group cut on both sides has its zero exactly between two integers, so that the last digit decides.
    """
    rows, groups = limit.shape
    size = weight.shape[1] // groups
    for i in prange(rows):
        tile, factors, inverses = i * len(col) // rows, row[i % len(row)], inverse_row[i % len(row)]
        for group in range(groups):
            values, divided, inverse = _slices(group, size, weight[i], matrix[i], inverse_col[tile])
            _cut_group(values, divided, inverse, inverses[group], limit[i, group])
            _divide_group(divided, col[tile, group * size : (group + 1) * size], divided, factors[group])


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _ranges(matrix, top, limits, scale, zero):  # type: ignore[no-untyped-def]
    rows, groups = scale.shape
    size = matrix.shape[1] // groups
    for i in prange(rows):
        for group in range(groups):
            low, high = extremes(matrix[i, group * size : (group + 1) * size])
            scale[i, group], zero[i, group] = choose_range(low, high, top, limits)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _errors(weight, scale, zero, step, offset, col, top, matrix):  # type: ignore[no-untyped-def]
    """Write W − Ŵ to `matrix`: codes from scale and zero, values from step and offset, their stored forms."""
    rows, groups = scale.shape
    size = weight.shape[1] // groups
    for i in prange(rows):
        columns = col[i * len(col) // rows]
        for group in range(groups):
            values, divisor, out = _slices(group, size, weight[i], columns, matrix[i])
            _errors_group(
                values, divisor, out, scale[i, group], zero[i, group], step[i, group], offset[i, group], top
            )


@njit(error_model="numpy", cache=True, inline="always")
def _slices(group, size, first, second, third):  # type: ignore[no-untyped-def]
    start, stop = group * size, (group + 1) * size
    return first[start:stop], second[start:stop], third[start:stop]


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _divide_group(weight, col, matrix, factor):  # type: ignore[no-untyped-def]
    for j in range(len(matrix)):
        matrix[j] = weight[j] / col[j] / factor


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _cut_group(weight, matrix, inverse_col, inverse, limit):  # type: ignore[no-untyped-def]
    """Overwrite a divided group by its weights without their excess over the limit."""
    for j in range(len(matrix)):
        excess = matrix[j] - min(max(matrix[j], -limit), limit)
        matrix[j] = weight[j] - excess / inverse_col[j] / inverse


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _errors_group(weight, col, matrix, unit, middle, stored_unit, stored_middle, top):  # type: ignore[no-untyped-def]
    for j in range(len(matrix)):
        code = min(max(np.rint(matrix[j] / unit + middle), np.float32(0)), top)
        matrix[j] = weight[j] - (code - stored_middle) * stored_unit * col[j]
