"""Quantizing on a processor: tiles are balanced in a core's cache, and rounded and packed in one more pass.

One pass over a tile gives both row and column deviations of W / (row ⊗ col), which is never written. A row is
short and is centred on its own mean. A column is long: it is shifted by its expected mean (the last mean,
moved by the last step), so that a large common offset costs no digits; float32 sums of 32 rows are added in
float64. A tile stops as soon as its imbalance rises, since nothing changes after that. The tile is copied
first: rows whose distance is a power of two share few lines of a cache, and would evict each other in each
pass.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.algorithms.sinkhorn import TIE, Sinkhorn
from sinq.formats.grid import Grid
from sinq.formats.rounding import nonzero, zero_limits
from sinq.kernels.cpu.threads import array, torch_threads

FAST = {"reassoc", "contract", "nsz"}
ROWS = 32  # rows summed in float32 before their sum is added in float64
CODES = 8  # codes in a packed word


def sinkhorn_scales(
    weight: Tensor, tile: tuple[int, int], options: Sinkhorn = Sinkhorn()
) -> tuple[Tensor, Tensor]:
    """See `sinq.algorithms.sinkhorn.sinkhorn_scales`."""
    (height, width), (rows, columns) = tile, weight.shape
    row_scale = np.empty((rows, columns // width), np.float32)
    col_scale = np.empty((rows // height, columns), np.float32)
    limits = (
        options.step_min,
        options.step_max,
        options.log_min,
        options.log_max,
        options.std_min,
        options.std_max,
    )
    steps = np.array(limits, np.float32)
    matrix, flags = array(weight), (options.early_stop, options.relative_floors)
    with torch_threads():
        _balance(matrix, height, width, options.iterations, steps, *flags, row_scale, col_scale)
    return torch.from_numpy(row_scale), torch.from_numpy(col_scale)


def round_scaled(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sinq.kernels.quantize.round_scaled`; uniform levels with a zero-point."""
    rows, columns = weight.shape
    groups = columns // grid.group_size
    row = np.ones((1, groups), np.float32) if row_scale is None else array(row_scale)
    col = np.ones((1, columns), np.float32) if col_scale is None else array(col_scale)
    packed = np.empty(-(-rows * columns // CODES) * grid.bits, np.uint8)
    scale, zero = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    with torch_threads():
        _round(array(weight), row, col, grid.bits, range_limits(grid), packed, scale, zero)
    return torch.from_numpy(packed), nonzero(torch.from_numpy(scale)), torch.from_numpy(zero)


def range_limits(grid: Grid) -> np.ndarray:
    """Return the limits that `choose_range` takes: the smallest range, the smallest and the largest zero."""
    return np.array([grid.range_floor, *zero_limits(grid)], np.float32)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _balance(weight, height, width, iterations, steps, early_stop, relative, row_scale, col_scale):  # type: ignore[no-untyped-def]
    rows, columns = weight.shape
    across = columns // width
    for index in prange(rows // height * across):
        i, j = index // across, index % across
        tile = weight[i * height : (i + 1) * height, j * width : (j + 1) * width]
        row, col = _balance_tile(tile.copy(), iterations, steps, early_stop, relative)
        row_scale[i * height : (i + 1) * height, j] = row
        col_scale[i, j * width : (j + 1) * width] = col


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _balance_tile(tile, iterations, steps, early_stop, relative):  # type: ignore[no-untyped-def]
    """Return the row and column scales of one tile."""
    height, width = tile.shape
    log_row, log_col = np.zeros(height, np.float32), np.zeros(width, np.float32)
    best_row, best_col = log_row.copy(), log_col.copy()
    row_std, col_std = np.empty(height, np.float32), np.empty(width, np.float32)
    inverse_row, inverse_col = np.ones(height, np.float32), np.ones(width, np.float32)
    mean = _column_means(tile)
    best, previous = np.float32(np.inf), np.float32(np.inf)
    unit, target, tie = 1.0, np.float32(0), np.float32(TIE)
    for step in range(iterations):
        spread = _deviations(tile, inverse_row, inverse_col, mean, row_std, col_std)
        if step == 0 and relative and spread > 0:
            unit = 1 / spread
        low, high = np.float32(np.inf), np.float32(0)
        for stds in (row_std, col_std):
            for k in range(len(stds)):
                stds[k] *= unit
                low, high = min(low, stds[k]), max(high, stds[k])
        if step == 0:
            target = min(max(low, steps[4]), steps[5]) + np.float32(1e-6)
        score = high / max(low, np.float32(1e-12))
        if score <= best * tie:
            best = min(best, score)
            best_row[:], best_col[:] = log_row, log_col
        if early_stop and score > previous * tie:
            break
        previous = score
        drift = _move(log_row, row_std, inverse_row, target, steps).mean()
        mean *= _move(log_col, col_std, inverse_col, target, steps) * drift
    return np.exp(best_row), np.exp(best_col)


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _column_means(tile):  # type: ignore[no-untyped-def]
    height, width = tile.shape
    total = np.zeros(width, np.float64)
    for start in range(0, height, ROWS):
        part = np.zeros(width, np.float32)
        for i in range(start, min(start + ROWS, height)):
            for j in range(width):
                part[j] += tile[i, j]
        total += part
    return (total / height).astype(np.float32)


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _deviations(tile, inverse_row, inverse_col, mean, row_std, col_std):  # type: ignore[no-untyped-def]
    """Write row and column deviations of tile · inverse_row ⊗ inverse_col, and return that of all entries.

    Deviations are unbiased. `mean` is updated to the means of the columns.
    """
    height, width = tile.shape
    sums, squares = np.zeros(width, np.float64), np.zeros(width, np.float64)
    scaled, part, part_squares = (
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
    )
    per_row = np.float32(1 / max(1, width - 1))
    for start in range(0, height, ROWS):
        part[:], part_squares[:] = 0, 0
        for i in range(start, min(start + ROWS, height)):
            total, square, factor = np.float32(0), np.float32(0), inverse_row[i]
            for j in range(width):
                scaled[j] = tile[i, j] * inverse_col[j]
                total += scaled[j]
            centre = total / np.float32(width)
            for j in range(width):
                deviation = scaled[j] - centre
                square += deviation * deviation
                shifted = factor * scaled[j] - mean[j]
                part[j] += shifted
                part_squares[j] += shifted * shifted
            row_std[i] = factor * np.sqrt(square * per_row)
        sums += part
        squares += part_squares
    within, between, middle = 0.0, 0.0, 0.0
    for j in range(width):
        offset = sums[j] / height
        around = max(squares[j] - sums[j] * offset, 0.0)
        col_std[j] = np.sqrt(around / max(1, height - 1))
        mean[j] += offset
        within += around
        middle += mean[j] / width
    for j in range(width):
        between += height * (mean[j] - middle) ** 2
    return np.sqrt((within + between) / max(1, height * width - 1))


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _move(log_scale, std, inverse, target, steps):  # type: ignore[no-untyped-def]
    """Move `log_scale` and `inverse` = exp(−log_scale) by one step, and return the factor of each inverse."""
    change = np.empty_like(inverse)
    for k in range(len(std)):
        ratio = min(max(min(max(std[k], steps[4]), steps[5]) / target, steps[0]), steps[1])
        log_scale[k] = min(max(log_scale[k] + np.log(ratio), steps[2]), steps[3])
        moved = np.exp(-log_scale[k])
        change[k] = moved / inverse[k]
        inverse[k] = moved
    return change


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _round(weight, row, col, bits, limits, packed, scale, zero):  # type: ignore[no-untyped-def]
    """Round eight rows at a time: their codes fill whole words, at any row length."""
    rows, columns = weight.shape
    for chunk in prange(-(-rows // CODES)):
        first, last = chunk * CODES, min(rows, (chunk + 1) * CODES)
        codes = np.zeros(-(-((last - first) * columns) // CODES) * CODES, np.uint8)
        for i in range(first, last):
            tile = i * len(col) // rows
            _round_row(
                weight[i],
                row[i % len(row)],
                col[tile],
                bits,
                limits,
                codes[(i - first) * columns :],
                scale[i],
                zero[i],
            )
        start = first * columns // CODES * bits
        pack_words(codes.view(np.uint64), bits, packed[start : start + len(codes) // CODES * bits])


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _round_row(weight, row, col, bits, limits, codes, scale, zero):  # type: ignore[no-untyped-def]
    top, size = np.float32(2**bits - 1), len(weight) // len(scale)
    matrix = np.empty(size, np.float32)
    for group in range(len(scale)):
        start, by = group * size, row[group]
        for j in range(size):
            matrix[j] = weight[start + j] / col[start + j] / by
        low, high = extremes(matrix)
        step, offset = choose_range(low, high, top, limits)
        scale[group], zero[group] = step, offset
        alive = step if step > 0 else np.float32(1)
        for j in range(size):
            codes[start + j] = np.uint8(min(max(np.rint(matrix[j] / alive + offset), np.float32(0)), top))


@njit(fastmath=FAST | {"nnan"}, error_model="numpy", cache=True)
def extremes(values):  # type: ignore[no-untyped-def]
    """Return the smallest and the largest value.

    This is a separate loop without regard to NaN: only then does it run in several lanes at once.
    """
    low = high = values[0]
    for value in values:
        low, high = min(low, value), max(high, value)
    return low, high


@njit(fastmath=FAST, error_model="numpy", cache=True)
def choose_range(low, high, top, limits):  # type: ignore[no-untyped-def]
    """Scale (0 for a group of zeros) and zero of a group from its extremes; see `rounding.choose`."""
    floor, smallest, largest = limits
    step = max(high - low, floor) / top
    if step <= 0:
        step = abs(low)
    alive = step if step > 0 else np.float32(1)
    offset = -np.rint(low / alive)
    if offset < smallest:
        step = high / (top - smallest)
    elif offset > largest:
        step = -low / largest
    return step, min(max(offset, smallest), largest)


@njit(cache=True)
def pack_words(words, bits, packed):  # type: ignore[no-untyped-def]
    """Pack the eight codes of each uint64 into `bits` bytes; see `packing.py` for the three steps."""
    for k in range(len(words)):
        word = words[k]
        for width in (8, 16, 32):
            used = bits * width // 8
            low = np.uint64((1 << used) - 1)
            if width < 32:
                low |= low << np.uint64(2 * width)
            if width < 16:
                low |= low << np.uint64(32)
            word = (word & low) | ((word >> np.uint64(width - used)) & (low << np.uint64(used)))
        for byte in range(bits):
            packed[k * bits + byte] = np.uint8(word >> np.uint64(8 * byte) & np.uint64(255))
