"""Sinkhorn iteration (`sinq/algorithms/sinkhorn.py`) as a Triton kernel: one program balances one tile.

Each iteration is one pass over the tile in blocks of whole rows. A row lies in registers, so its deviation is
complete at once; columns are summed per thread and added up at the end of the pass. W / (row ⊗ col) is never
written. A tile stays in the L2 cache from pass to pass (5120 × 64 in bfloat16 are 0.7 MB), so memory is read
about once.

Three things are less plain than they look:

- Columns are summed after the mean of the first block of rows is subtracted. For any weights, the rest of the
  offset is at most √blocks deviations of the column, so squares lose a factor of `blocks` of their digits at
  worst, and usually nothing.
- The score of the whole tile decides if a row scale moves, and is known only after the pass. So the rows move
  at the start of the next pass, from the deviations that this pass leaves in scratch memory.
- Scratch memory has two sides: a pass reads one and writes the other. Threads that hold the same row would
  otherwise race: one could read a value that another has already moved.
"""

import triton
import triton.language as tl

from sinq.algorithms.sinkhorn import TIE

SAME = tl.constexpr(TIE)
SCRATCH = tl.constexpr(5)
"""Vectors of scratch memory per tile: two of logarithms, two of deviations, and the best logarithms."""


@triton.jit(do_not_specialize=["iterations"])
def balance(  # type: ignore[no-untyped-def]
    weight,
    scratch,
    row_scale,
    col_scale,
    height,
    columns,
    iterations,
    step_min,
    step_max,
    log_min,
    log_max,
    std_min,
    std_max,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    EARLY_STOP: tl.constexpr,
    RELATIVE: tl.constexpr,
):
    """Write row and column scales of tile `program_id(0)` of `weight` (out, in).

    `scratch` (tiles, SCRATCH, height) must be zeros at the start.
    """
    index = tl.program_id(0)
    across = columns // WIDTH
    top, left = (index // across).to(tl.int64) * height, index % across * WIDTH
    tile = weight + top * columns + left
    logs = scratch + index.to(tl.int64) * SCRATCH * height
    stds, best_row = logs + 2 * height, logs + 4 * height
    block, col = tl.arange(0, BLOCK_ROWS), tl.arange(0, PADDED_WIDTH)
    inside = col < WIDTH

    log_col, best_col = tl.zeros([PADDED_WIDTH], tl.float32), tl.zeros([PADDED_WIDTH], tl.float32)
    best, previous, unit, target, moving = float("inf"), float("inf"), 1.0, 1.0, 0.0
    # `better` is 1 where the last state is the best.
    remaining, read, better = iterations, iterations * 0, 0.0
    while remaining > 0:
        inverse_col = tl.exp(-log_col)
        sums, squares = (
            tl.zeros([BLOCK_ROWS, PADDED_WIDTH], tl.float32),
            tl.zeros([BLOCK_ROWS, PADDED_WIDTH], tl.float32),
        )
        shift = tl.zeros([PADDED_WIDTH], tl.float32)
        low_row, high_row = (
            tl.full([BLOCK_ROWS], float("inf"), tl.float32),
            tl.zeros([BLOCK_ROWS], tl.float32),
        )
        tl.debug_barrier()  # all threads see what the last pass wrote
        for start in tl.range(0, height, BLOCK_ROWS, num_stages=2):
            row = start + block
            valid = row < height
            log = tl.load(logs + read * height + row, mask=valid, other=0.0)
            std = tl.load(stds + read * height + row, mask=valid, other=0.0)
            tl.store(best_row + row, log, mask=tl.where(valid, better, 0.0) > 0)
            log = _moved(
                log, std * unit, target, moving, step_min, step_max, log_min, log_max, std_min, std_max
            )
            tl.store(logs + (1 - read) * height + row, log, mask=valid)
            factor = tl.exp(-log)

            offsets = row.to(tl.int64)[:, None] * columns + col[None, :]
            scaled = (
                tl.load(tile + offsets, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
                * inverse_col[None, :]
            )
            centred = scaled - (tl.sum(scaled, axis=1) / WIDTH)[:, None]
            centred = tl.where(inside[None, :], centred, 0.0)
            std = factor * tl.sqrt(tl.sum(centred * centred, axis=1) / max(1, WIDTH - 1))
            tl.store(stds + (1 - read) * height + row, std, mask=valid)
            low_row = tl.minimum(low_row, tl.where(valid, std, float("inf")))
            high_row = tl.maximum(high_row, tl.where(valid, std, 0.0))

            scaled = scaled * factor[:, None]
            if start == 0:
                shift = tl.sum(scaled, axis=0) / tl.minimum(height, BLOCK_ROWS)
            scaled = tl.where(valid[:, None], scaled - shift[None, :], 0.0)
            sums += scaled
            squares += scaled * scaled
        read = 1 - read

        total = tl.sum(sums, axis=0).to(tl.float64)
        around = tl.maximum(tl.sum(squares, axis=0).to(tl.float64) - total * total / height, 0.0)
        if RELATIVE:
            if remaining == iterations:
                unit = _unit(around, tl.where(inside, shift + total / height, 0.0), inside, height, WIDTH)
        col_std = tl.sqrt(around / tl.maximum(height - 1, 1)).to(tl.float32) * unit
        low = tl.minimum(
            tl.min(low_row, axis=0) * unit, tl.min(tl.where(inside, col_std, float("inf")), axis=0)
        )
        high = tl.maximum(tl.max(high_row, axis=0) * unit, tl.max(col_std, axis=0))
        if remaining == iterations:
            target = tl.minimum(tl.maximum(low, std_min), std_max) + 1e-6
        score = tl.div_rn(high, tl.maximum(low, 1e-12))
        better = tl.where(score <= best * SAME, 1.0, 0.0)
        best_col = tl.where(better > 0, log_col, best_col)
        best = tl.minimum(score, best)
        log_col = _moved(
            log_col, col_std, target, 1.0, step_min, step_max, log_min, log_max, std_min, std_max
        )
        moving = 1.0
        remaining -= 1
        if EARLY_STOP:
            remaining = tl.where(score > previous * SAME, 0, remaining)
        previous = score

    tl.store(col_scale + top // height * columns + left + col, tl.exp(best_col), mask=inside)
    tl.debug_barrier()
    for start in range(0, height, BLOCK_ROWS):
        row = start + block
        valid = row < height
        last = tl.load(logs + read * height + row, mask=valid, other=0.0)
        log = tl.where(better > 0, last, tl.load(best_row + row, mask=valid, other=0.0))
        tl.store(row_scale + (top + row) * across + left // WIDTH, tl.exp(log), mask=valid)


@triton.jit
def _moved(log_scale, std, target, moving, step_min, step_max, log_min, log_max, std_min, std_max):  # type: ignore[no-untyped-def]
    """Logarithms of scales after one step from `log_scale`; unchanged where `moving` is 0."""
    ratio = tl.div_rn(tl.minimum(tl.maximum(std, std_min), std_max), target)
    step = tl.log(tl.minimum(tl.maximum(ratio, step_min), step_max)) * moving
    return tl.minimum(tl.maximum(log_scale + step, log_min), log_max)


@triton.jit
def _unit(around, mean, inside, height, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Inverse deviation of all entries, from sums of squares and means of columns; 1 where all are equal."""
    distance = tl.where(inside, mean - tl.sum(mean, axis=0) / WIDTH, 0.0)
    total = tl.sum(around + distance * distance * height, axis=0)
    spread = tl.sqrt(total / tl.maximum(height * WIDTH - 1, 1)).to(tl.float32)
    return tl.where(spread > 0, 1.0 / spread, 1.0)
