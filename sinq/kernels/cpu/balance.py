"""Sinkhorn's iteration on one tile, in a core's cache: one reading of the tile for each step.

A step needs the deviations of the rows and columns of W / (row ⊗ col), which is never written as a whole:
ROWS rows of it are. A row is short and is centred on its own mean. A column is long: it is shifted by its
expected mean (the last mean, moved by the last step), so that a large common offset costs no digits; float32
sums of ROWS rows are added in float64. A tile stops as soon as its imbalance rises, since nothing changes
after that.

Source: `sinq/algorithms/sinkhorn.py` is the definition.
"""

import numpy as np
from numba import njit

from sinq.algorithms.sinkhorn import TIE
from sinq.kernels.cpu.arguments import FAST, f32
from sinq.kernels.cpu.column_sums import LANES, column_sums

ROWS = 32
"""Rows summed in float32 before their sum is added in float64."""


@njit(fastmath=FAST, error_model="numpy")
def balance_tile(tile, iterations, steps, early_stop, relative):  # type: ignore[no-untyped-def]
    """Return the row and column scales of one tile."""
    height, width = tile.shape
    log_row, log_col = np.zeros(height, np.float32), np.zeros(width, np.float32)
    best_row, best_col = log_row.copy(), log_col.copy()
    row_std, col_std = np.empty(height, np.float32), np.empty(width, np.float32)
    inverse_row, inverse_col = np.ones(height, np.float32), np.ones(width, np.float32)
    scaled, mean = np.zeros((ROWS, -(-width // LANES) * LANES), np.float32), _column_means(tile)
    best, previous = np.float32(np.inf), np.float32(np.inf)
    unit, target, tie = 1.0, np.float32(0), np.float32(TIE)
    for step in range(iterations):
        spread = _deviations(tile, scaled, inverse_row, inverse_col, mean, row_std, col_std)
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


@njit(fastmath=FAST, error_model="numpy")
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


@njit(fastmath=FAST, error_model="numpy")
def _deviations(tile, scaled, inverse_row, inverse_col, mean, row_std, col_std):  # type: ignore[no-untyped-def]
    """Write row and column deviations of tile · inverse_row ⊗ inverse_col, and return that of all entries.

    Deviations are unbiased. `mean` is updated to the means of the columns.
    """
    height, width = tile.shape
    sums, squares = _sums(tile, scaled, inverse_row, inverse_col, mean, row_std)
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


@njit(fastmath=FAST, error_model="numpy")
def _sums(tile, scaled, inverse_row, inverse_col, mean, row_std):  # type: ignore[no-untyped-def]
    """Write row deviations; return sums and sums of squares of columns less `mean`, float64.

    `scaled` is memory for ROWS rows. Loops are short, so that those of many rows are under way at once.
    """
    height, width = tile.shape
    sums, squares = np.zeros(width, np.float64), np.zeros(width, np.float64)
    middle, part, part_squares = np.zeros((3, scaled.shape[1]), np.float32)
    middle[:width] = mean
    centre, per_row = np.empty(ROWS, np.float32), f32(1 / max(1, width - 1))
    for start in range(0, height, ROWS):
        rows = min(ROWS, height - start)
        for i in range(rows):
            total = f32(0)
            for j in range(width):
                scaled[i, j] = tile[start + i, j] * inverse_col[j]
                total += scaled[i, j]
            centre[i] = total / f32(width)
        for i in range(rows):
            square = f32(0)
            for j in range(width):
                deviation = scaled[i, j] - centre[i]
                square += deviation * deviation
            row_std[start + i] = inverse_row[start + i] * np.sqrt(square * per_row)
        column_sums(
            scaled.ctypes.data,
            4 * scaled.shape[1],
            rows,
            inverse_row[start:].ctypes.data,
            middle.ctypes.data,
            part.ctypes.data,
            part_squares.ctypes.data,
            len(middle) // LANES,
        )
        sums += part[:width]
        squares += part_squares[:width]
    return sums, squares


@njit(fastmath=FAST, error_model="numpy")
def _move(log_scale, std, inverse, target, steps):  # type: ignore[no-untyped-def]
    """Move `log_scale` and `inverse` = exp(−log_scale) by one step, and return the factor of each inverse."""
    change, (least, most, lowest, highest) = np.empty_like(inverse), steps[:4]
    log_least, log_most = np.log(least), np.log(most)
    for k in range(len(std)):
        change[k] = min(max(std[k], steps[4]), steps[5]) / target
    for k in range(len(std)):
        if change[k] >= most:
            by = log_most
        elif change[k] <= least:
            by = log_least
        else:
            by = np.log(change[k])
        log_scale[k] = min(max(log_scale[k] + by, lowest), highest)
    for k in range(len(std)):
        moved = np.exp(-log_scale[k])
        change[k] = moved / inverse[k]
        inverse[k] = moved
    return change
