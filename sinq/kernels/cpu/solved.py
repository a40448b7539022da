"""Refined SINQ on a processor: row by row, all tiles side by side, so that memory is read in order.

A column's sum is taken over strips of `ROWS` rows in float32, each by one thread, and over strips in float64.
Rounding takes all steps of a group while the group lies in the first-level cache: its codes are chosen anew
at each step and only the last ones are written.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.algorithms.solved_scales import Solved, centred_columns, column_counts
from sinq.formats.grid import Grid
from sinq.formats.rounding import nonzero
from sinq.kernels.cpu.arguments import FAST
from sinq.kernels.cpu.balance import ROWS
from sinq.kernels.cpu.quantize import CODES, choose_range, extremes, pack_words, range_limits
from sinq.kernels.cpu.threads import array, torch_threads


def column_magnitudes(weight: Tensor, tile: tuple[int, int], norm: float = 1.0, passes: int = 2) -> Tensor:
    """See `sinq.algorithms.solved_scales.column_magnitudes`; only norm 1."""
    (height, width), (rows, columns) = tile, weight.shape
    tiles, strips, matrix = rows // height, -(-height // ROWS), array(weight)
    column = np.ones((tiles, columns), np.float32)
    sums = np.empty((tiles * strips, columns), np.float32)
    with torch_threads():
        for _ in range(passes):
            _column_sums(matrix, height, width, 1 / column, sums)
            mean = sums.reshape(tiles, strips, columns).sum(1, dtype=np.float64) / height
            means = torch.from_numpy(mean.astype(np.float32)).reshape(tiles, -1, width)
            column = centred_columns(means).reshape(tiles, columns).numpy()
    return torch.from_numpy(column)


def round_solved(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, options: Solved
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sinq.kernels.quantize.round_solved`; only uniform levels."""
    rows, columns = weight.shape
    groups = columns // grid.group_size
    row = np.ones((1, groups), np.float32) if row_scale is None else array(row_scale)
    col = np.ones((1, columns), np.float32) if col_scale is None else array(col_scale)
    counts = array(column_counts(col_scale, grid, options.influence, weight.float()[:1])).reshape(-1, columns)
    packed = np.empty(-(-rows * columns // CODES) * grid.bits, np.uint8)
    scale, zero = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    share, limits = np.float32(options.range_share), range_limits(grid)
    with torch_threads():
        _round(array(weight), row, col, counts, grid.bits, share, options.steps, limits, packed, scale, zero)
    return torch.from_numpy(packed), nonzero(torch.from_numpy(scale)), torch.from_numpy(zero)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _column_sums(weight, height, width, inverse, sums):  # type: ignore[no-untyped-def]
    """Write Σ|w| / (root mean square of w / column along the row of the tile), over each strip of rows.

    `sums` is (tiles · strips, columns).
    """
    columns, strips = weight.shape[1], -(-height // ROWS)
    for strip in prange(len(sums)):
        tile = strip // strips
        first = tile * height + strip % strips * ROWS
        sums[strip] = 0
        for i in range(first, min(first + ROWS, (tile + 1) * height)):
            for start in range(0, columns, width):
                stop, square = start + width, np.float32(0)
                row, by, total = weight[i, start:stop], inverse[tile, start:stop], sums[strip, start:stop]
                for j in range(width):
                    scaled = row[j] * by[j]
                    square += scaled * scaled
                factor = np.float32(1) / np.sqrt(square / np.float32(width)) if square > 0 else np.float32(1)
                for j in range(width):
                    total[j] += abs(row[j]) * factor


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _round(weight, row, col, counts, bits, share, steps, limits, packed, scale, zero):  # type: ignore[no-untyped-def]
    """Round eight rows at a time: their codes fill whole words, at any row length."""
    rows, columns = weight.shape
    size = columns // scale.shape[1]
    for chunk in prange(-(-rows // CODES)):
        first, last = chunk * CODES, min(rows, (chunk + 1) * CODES)
        codes = np.zeros(-(-((last - first) * columns) // CODES) * CODES, np.uint8)
        matrix = np.empty(size, np.float32)
        for i in range(first, last):
            tile, counted = i * len(col) // rows, i * len(counts) // rows
            for group in range(scale.shape[1]):
                start, by = group * size, row[i % len(row), group]
                values, divisor = weight[i, start : start + size], col[tile, start : start + size]
                for j in range(size):
                    matrix[j] = values[j] / divisor[j] / by
                slot = (i - first) * columns + start
                count, found = counts[counted, start : start + size], codes[slot : slot + size]
                scale[i, group], zero[i, group] = _round_group(
                    matrix, count, bits, share, steps, limits, found
                )
        start = first * columns // CODES * bits
        pack_words(codes.view(np.uint64), bits, packed[start : start + len(codes) // CODES * bits])


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _round_group(matrix, count, bits, share, steps, limits, codes):  # type: ignore[no-untyped-def]
    """Write the codes of one group, and return its scale (0 for a group of zeros) and zero.

    These are `narrow`, `orthogonal` in `steps` steps, and `centred` of `sinq.algorithms.solved_scales`.
    """
    top, size = np.float32(2**bits - 1), np.float32(len(matrix))
    (low, high), mean, variance = extremes(matrix), np.float32(0), np.float32(0)
    for j in range(len(matrix)):
        mean += matrix[j] * count[j]
    mean /= size
    for j in range(len(matrix)):
        deviation = matrix[j] - mean
        variance += deviation * deviation * count[j]
    step, offset = choose_range(low, high, top, limits)
    narrowed = share * (high - low) / top
    step, offset = _storable(narrowed, top / 2 - (low + high) / 2 / narrowed, step, offset, limits)
    for _ in range(steps):
        level_mean, along = _sums(matrix, count, mean, step, offset, top)
        solved = variance / along
        step, offset = _storable(solved, level_mean / size - mean / solved, step, offset, limits)
    total, alive = np.float32(0), step if step > 0 else np.float32(1)
    for j in range(len(matrix)):
        code = min(max(np.rint(matrix[j] / alive + offset), np.float32(0)), top)
        total += code * count[j]
        codes[j] = np.uint8(code)
    return step, _storable(alive, total / size - mean / alive, alive, offset, limits)[1]


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _sums(matrix, count, mean, step, offset, top):  # type: ignore[no-untyped-def]
    """Return Σ code · count and Σ code · (w − mean) · count of the nearest codes."""
    total, along, alive = np.float32(0), np.float32(0), step if step > 0 else np.float32(1)
    for j in range(len(matrix)):
        code = min(max(np.rint(matrix[j] / alive + offset), np.float32(0)), top) * count[j]
        total += code
        along += code * (matrix[j] - mean)
    return total, along


@njit(error_model="numpy", cache=True)
def _storable(scale, zero, old_scale, old_zero, limits):  # type: ignore[no-untyped-def]
    if scale > 0 and np.isfinite(scale) and limits[1] <= zero <= limits[2]:
        return scale, zero
    return old_scale, old_zero
