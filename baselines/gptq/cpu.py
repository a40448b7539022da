"""GPTQ's columns on a CPU: sixteen rows of a block are rounded side by side, while they are in cache.

Rows are independent of each other, but within a row each column waits for the error of the one before it. So
the lanes of a register hold rows: the block of sixteen rows is transposed (columns × rows), a column is
rounded in two registers, and its error is taken from each later column of the block with one factor for all
lanes.

Operations and their order are those of the definition's loop (`baselines/gptq/method.py`), and none is fused,
so the codes are equal, not only nearly: one code that differed would change all later ones of its row.

Not covered: symmetric grids and tables, which keep the loop.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.formats.grid import Grid
from sinq.formats.mixed_columns import ColumnLevels
from sinq.formats.rounding import nonzero
from sinq.kernels.cpu.quantize import choose_range, range_limits
from sinq.kernels.cpu.refine import EXACT
from sinq.kernels.cpu.threads import array, torch_threads

LANES = 16  # rows side by side


def round_block(
    work: Tensor,
    factor: Tensor,
    columns: Tensor,
    grid: Grid,
    levels: ColumnLevels | None,
    choosing: bool,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    """Round a block like `baselines.gptq.method.round_block`, for uniform levels with a zero-point."""
    levels = levels or ColumnLevels.uniform(codes.shape[1], grid)
    errors = np.empty(tuple(work.shape), np.float32)
    with torch_threads():
        _round_block(
            array(work),
            array(factor),
            columns.numpy(),
            grid.group_size,
            choosing,
            np.float32(2**grid.bits - 1),
            torch.stack([levels.top, levels.step, levels.density, levels.offset], dim=1)[columns].numpy(),
            range_limits(grid),
            codes.numpy(),
            scale.numpy(),
            zero.numpy(),
            errors,
        )
    if choosing:
        for group in columns[:: grid.group_size].div(grid.group_size, rounding_mode="floor").tolist():
            scale[:, group] = nonzero(scale[:, group])
    return torch.from_numpy(errors)


@njit(parallel=True, fastmath=EXACT, error_model="numpy", cache=True)
def _round_block(  # type: ignore[no-untyped-def]
    work, factor, columns, group_size, choosing, last, levels, limits, codes, scale, zero, errors
):
    rows, width = work.shape
    for chunk in prange(-(-rows // LANES)):
        first, lanes = chunk * LANES, min(LANES, rows - chunk * LANES)
        tile, found = np.zeros((width, LANES), np.float32), np.empty((width, LANES), np.uint8)
        unit, offset, error = (
            np.ones(LANES, np.float32),
            np.zeros(LANES, np.float32),
            np.empty(LANES, np.float32),
        )
        for lane in range(lanes):
            for j in range(width):
                tile[j, lane] = work[first + lane, j]
        for j in range(width):
            group = columns[j] // group_size
            if choosing and j % group_size == 0:
                _choose_group(
                    tile[j : j + group_size],
                    last,
                    limits,
                    scale[first : first + lanes, group],
                    zero[first : first + lanes, group],
                )
            if j == 0 or group != columns[j - 1] // group_size:
                for lane in range(lanes):
                    chosen = scale[first + lane, group]
                    unit[lane], offset[lane] = (
                        chosen if chosen > 0 else np.float32(1),
                        zero[first + lane, group],
                    )
            inverse = factor[j, j]
            top, step, density, start = levels[j]
            for lane in range(LANES):
                position = tile[j, lane] / unit[lane] + offset[lane]
                code = min(max(np.rint((position - start) * density), np.float32(0)), top)
                found[j, lane] = np.uint8(code)
                error[lane] = (tile[j, lane] - (code * step + start - offset[lane]) * unit[lane]) / inverse
                tile[j, lane] = error[lane]  # this column's weights are done with
            _spread(error, factor[j, j + 1 :], tile[j + 1 :])
        for lane in range(lanes):
            for j in range(width):
                codes[first + lane, columns[j]] = found[j, lane]
                errors[first + lane, j] = tile[j, lane]


@njit(fastmath=EXACT, error_model="numpy", cache=True)
def _spread(error, factor, tile):  # type: ignore[no-untyped-def]
    """Subtract factor ⊗ error from the tile (columns, lanes)."""
    for k in range(len(factor)):
        for lane in range(LANES):
            tile[k, lane] -= error[lane] * factor[k]


@njit(fastmath=EXACT, error_model="numpy", cache=True)
def _choose_group(tile, top, limits, scale, zero):  # type: ignore[no-untyped-def]
    """Set the scale (0 for a group of zeros) and zero of each lane of a group (columns, lanes)."""
    low, high = np.full(LANES, np.inf, np.float32), np.full(LANES, -np.inf, np.float32)
    for k in range(len(tile)):
        for lane in range(LANES):
            low[lane], high[lane] = min(low[lane], tile[k, lane]), max(high[lane], tile[k, lane])
    for lane in range(len(scale)):
        scale[lane], zero[lane] = choose_range(low[lane], high[lane], top, limits)
