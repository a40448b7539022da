"""Quantizing on CUDA: SINQ's scales by `sinkhorn.py`, rounding and packing by `round.py`.

Weights are read in bfloat16, float16 or float32, without a conversion. Nothing here waits for the device.

Not covered: very wide tiles are right but slow. A block is at least one row, so above about 8192 columns it
no longer fits the registers.
"""

import torch
import triton
from torch import Tensor

from sinq.algorithms.sinkhorn import Sinkhorn
from sinq.formats.grid import Grid
from sinq.formats.packing import CODES_PER_WORD, pack
from sinq.formats.rounding import nonzero, zero_limits
from sinq.kernels.triton.round import round_groups
from sinq.kernels.triton.sinkhorn import SCRATCH, balance

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BALANCE_ELEMENTS, ROUND_ELEMENTS = 16384, 2048
"""Weights in a block of each kernel."""
BALANCE_EACH, ROUND_EACH = 64, 16
"""Weights of a block in the registers of one thread.

`balance` has as many as fit, which was the fastest of 10 sizes on an H200.
"""
UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Dtypes by their bytes."""


def sinkhorn_scales(
    weight: Tensor, tile: tuple[int, int], options: Sinkhorn = Sinkhorn()
) -> tuple[Tensor, Tensor]:
    """See `sinq.algorithms.sinkhorn.sinkhorn_scales`."""
    (height, width), (rows, columns) = tile, weight.shape
    tiles = rows // height * (columns // width)
    scratch = weight.new_zeros(tiles, SCRATCH.value, height, dtype=torch.float32)
    row_scale = weight.new_empty(rows, columns // width, dtype=torch.float32)
    col_scale = weight.new_empty(rows // height, columns, dtype=torch.float32)
    padded = triton.next_power_of_2(width)
    block_rows = _block_rows(height, padded, BALANCE_ELEMENTS)
    limits = (
        options.step_min,
        options.step_max,
        options.log_min,
        options.log_max,
        options.std_min,
        options.std_max,
    )
    balance[(tiles,)](
        _readable(weight), scratch, row_scale, col_scale, height, columns, options.iterations,
        *(float(limit) for limit in limits),
        WIDTH=width, PADDED_WIDTH=padded, BLOCK_ROWS=block_rows,
        EARLY_STOP=options.early_stop, RELATIVE=options.relative_floors,
        num_warps=warps_for(block_rows * padded, BALANCE_EACH),
    )  # fmt: skip
    return row_scale, col_scale


def round_scaled(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sinq.kernels.quantize.round_scaled`; uniform levels with a zero-point."""
    rows, columns = weight.shape
    groups, whole = columns // grid.group_size, grid.group_size % CODES_PER_WORD == 0
    scale, zero = (weight.new_empty(rows, groups, dtype=torch.float32) for _ in range(2))
    size = rows * columns // CODES_PER_WORD * grid.bits if whole else rows * columns
    codes = weight.new_empty(size, dtype=torch.uint8)
    units = codes.view(UNITS[grid.bits & -grid.bits]) if whole else codes
    words = triton.next_power_of_2(triton.cdiv(grid.group_size, CODES_PER_WORD))
    block_rows = _block_rows(rows, words * CODES_PER_WORD, ROUND_ELEMENTS)
    limits = [float(limit) for limit in (grid.range_floor, *zero_limits(grid))]
    round_groups[(triton.cdiv(rows, block_rows), groups)](
        _readable(weight), _scales(row_scale), _scales(col_scale), units, scale, zero,
        rows, columns, rows if col_scale is None else rows // len(col_scale), *limits,
        BITS=grid.bits, GROUP=grid.group_size, WORDS=words, BLOCK_ROWS=block_rows, PACK=whole,
        num_warps=warps_for(block_rows * words * CODES_PER_WORD, ROUND_EACH),
    )  # fmt: skip
    return codes if whole else pack(codes, grid.bits), nonzero(scale), zero


def _readable(weight: Tensor) -> Tensor:
    return (weight if weight.dtype in DTYPES else weight.float()).detach().contiguous()


def _scales(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale.detach().float().contiguous()


def _block_rows(rows: int, width: int, elements: int) -> int:
    return int(min(triton.next_power_of_2(rows), max(1, elements // width)))


def warps_for(elements: int, per_thread: int) -> int:
    """Return the warps of a program with a block of `elements` weights, `per_thread` in each thread."""
    return int(min(16, max(1, triton.next_power_of_2(elements // (32 * per_thread)))))
