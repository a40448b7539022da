"""Quantizing on a processor: tiles are balanced in a core's cache, and rounded and packed in one more pass.

A tile is copied before it is balanced (`balance.py`): rows whose distance is a power of two share few lines
of a cache, and would evict each other in each pass.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.algorithms.sinkhorn import Sinkhorn
from sinq.formats.grid import Grid
from sinq.formats.rounding import nonzero, zero_limits
from sinq.kernels.cpu.arguments import FAST
from sinq.kernels.cpu.balance import balance_tile
from sinq.kernels.cpu.threads import array, torch_threads

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
        row, col = balance_tile(tile.copy(), iterations, steps, early_stop, relative)
        row_scale[i * height : (i + 1) * height, j] = row
        col_scale[i, j * width : (j + 1) * width] = col


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
