"""GPTQ's columns on CUDA: a program rounds some rows of a block, which stay in its registers.

A column waits for the errors of those before it, rows are independent. So a program holds BLOCK_ROWS rows of
the block, takes out one column after another by a mask, rounds it, and subtracts its error from the others.
Where scales are chosen on the way, the block is done group by group, and each group's extremes are taken in
torch.

Division is IEEE division and rounding is to even, as in the definition. The compiler may fuse the
subtraction with its product, so that a weight at the edge between two codes can fall on the other side, and
all later columns of its row with it.

Not covered: symmetric grids and tables, which keep the loop.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sinq import choose
from sinq.formats.grid import Grid
from sinq.formats.mixed_columns import ColumnLevels
from sinq.kernels.triton.round import rint

BLOCK_ROWS = 16
WARPS = 4


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
    """Round a block like `baselines.gptq.rounded.round_block`, for uniform levels with a zero-point."""
    levels = levels or ColumnLevels.uniform(codes.shape[1], grid)
    table = torch.stack([levels.top, levels.step, levels.density, levels.offset], dim=1)
    table = table.to(work.device)[columns].contiguous()
    errors, size = torch.empty_like(work, memory_format=torch.contiguous_format), len(columns)
    step = grid.group_size if choosing else size
    for start in range(0, size, step):
        part = slice(start, start + step)
        if choosing:
            group = columns[part][:1] // grid.group_size
            found, offset = choose(work[:, part], grid)
            assert offset is not None  # the grid is not symmetric
            scale.index_copy_(1, group, found)
            zero.index_copy_(1, group, offset)
        errors[:, part] = _run(
            work[:, part], factor[part, part], columns[part], table[part], grid.group_size, codes, scale, zero
        )
        work[:, start + step :] -= errors[:, part] @ factor[part, start + step :]
    return errors


def _run(
    work: Tensor,
    factor: Tensor,
    columns: Tensor,
    levels: Tensor,
    group_size: int,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    """Round columns whose groups have scales, set their codes, and return the errors, (out, width)."""
    rows, width = work.shape
    errors = work.new_empty(rows, width)
    _round_columns[(triton.cdiv(rows, BLOCK_ROWS),)](
        work.contiguous(), factor.contiguous(), columns, levels, scale, zero, codes, errors, rows, width,
        codes.shape[1], scale.shape[1], group_size,
        WIDTH=triton.next_power_of_2(width), BLOCK_ROWS=BLOCK_ROWS, num_warps=WARPS,
    )  # fmt: skip
    return errors


@triton.jit
def _round_columns(  # type: ignore[no-untyped-def]
    work,
    factor,
    columns,
    levels,
    scale,
    zero,
    codes,
    errors,
    rows,
    width,
    in_features,
    groups,
    group_size,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Round BLOCK_ROWS rows of a block, column by column; the grid is (row blocks,).

    `levels` has top, step, density and offset of each column of the block.
    """
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    lane, valid = tl.arange(0, WIDTH), row < rows
    inside = valid[:, None] & (lane < width)[None, :]
    tile = tl.load(work + row[:, None] * width + lane[None, :], mask=inside, other=0.0)
    for j in range(width):
        value = tl.sum(tl.where((lane == j)[None, :], tile, 0.0), axis=1)
        column = tl.load(columns + j)
        entry = row * groups + column // group_size
        unit = tl.load(scale + entry, mask=valid, other=1.0)
        offset = tl.load(zero + entry, mask=valid, other=0.0)
        top, step = tl.load(levels + 4 * j), tl.load(levels + 4 * j + 1)
        density, start = tl.load(levels + 4 * j + 2), tl.load(levels + 4 * j + 3)
        position = tl.div_rn(value, unit) + offset
        code = tl.minimum(tl.maximum(rint((position - start) * density), 0.0), top)
        stored = (code * step + start - offset) * unit
        error = tl.div_rn(value - stored, tl.load(factor + j * width + j))
        tl.store(codes + row * in_features + column, code.to(tl.uint8), mask=valid)
        tl.store(errors + row * width + j, error, mask=valid)
        later = (lane > j) & (lane < width)
        spread = tl.load(factor + j * width + lane, mask=later, other=0.0)
        tile -= error[:, None] * spread[None, :]
