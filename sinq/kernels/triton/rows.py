"""Product x Ŵᵀ + b for 2 to 16 rows of x, in Triton: tensor-core products straight from packed codes.

With few rows a weight is used a few times, so what counts is the instructions that unpack it. Tensor cores
add up over columns, and the order of these is free, if x and Ŵ have the same. So codes never move between
threads before they are operands: a thread has one unit of 32 codes, and product number i takes code i of all
units of the block with the columns of x that belong to it. For that, `spread` first writes x, times its
column scale, with those columns side by side: entry (i, unit) is column 32 · unit + i.

Where a matrix has too few rows to keep a device busy, several programs share the columns of a block of rows;
each writes a partial sum in float32, and `add_up` adds them in a fixed order, so results do not depend on
which program ends first.

Measured on an H200 with 16 rows of bfloat16 and 12288×4096: 4 bits take 2.2 times as long as dense weights,
8 bits 2.9 times. Of blocks of 16 to 64 rows with 1 to 4 warps, 16 rows with one warp were the fastest.
"""

import triton
import triton.language as tl

from sinq.kernels.triton.dequantize import load_scale, load_zero
from sinq.kernels.triton.vector import UNIT, load_window

BLOCK_UNITS = 16
"""Units of 32 columns in a block: the depth of a tensor-core product."""
PROGRAMS, MOST_SPLITS = 3072, 4
"""Programs of one warp that keep an H200 busy, and the most that share a block of rows."""


def splits(rows: int, units: int, block_rows: int) -> int:
    """Return the programs that share a block of rows: as many as keep a device busy."""
    wanted, most = -(-PROGRAMS * block_rows // rows), units // (2 * BLOCK_UNITS)
    return max(1, min(MOST_SPLITS, wanted, most))


@triton.jit
def spread(x, col_scale, out, UNITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write out (batch, 32, UNITS) = x (batch, 32 · UNITS), times `col_scale` if there is one, spread."""
    member = tl.program_id(1).to(tl.int64) * (UNITS * UNIT)
    unit, code = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, UNIT)
    column, inside = unit[:, None] * UNIT + code[None, :], (unit < UNITS)[:, None]
    entries = tl.load(x + member + column, mask=inside, other=0)
    if col_scale is not None:
        factor = tl.load(col_scale + column, mask=inside, other=0).to(tl.float32)
        entries = (entries.to(tl.float32) * factor).to(x.dtype.element_ty)
    tl.store(out + member + code[None, :] * UNITS + unit[:, None], entries, mask=inside)


@triton.jit(do_not_specialize=["batch"])
def multiply_rows(  # type: ignore[no-untyped-def]
    x, codes, scale, zero, scale_range, scale_exponent, bias, out, batch, rows,
    BATCH: tl.constexpr, UNITS: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, BITS: tl.constexpr,
    WINDOW: tl.constexpr, ZERO: tl.constexpr, OPERAND: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_UNITS: tl.constexpr,
):  # fmt: skip
    """Write out (SPLITS, batch, rows), each a sum over a part of the columns, for BLOCK_ROWS rows of Ŵ.

    A bias is added to all of them. x is that of `spread`. The grid is (row blocks, SPLITS). CHUNK adjacent
    codes lie in one group and unit.
    """
    row, member = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), tl.arange(0, BATCH)
    span: tl.constexpr = (UNITS + SPLITS * BLOCK_UNITS - 1) // (SPLITS * BLOCK_UNITS) * BLOCK_UNITS
    begin = tl.program_id(1) * span
    total = tl.zeros([BATCH, BLOCK_ROWS], tl.float32)
    for start in tl.range(begin, tl.minimum(begin + span, UNITS), BLOCK_UNITS, num_stages=1):
        unit = start + tl.arange(0, BLOCK_UNITS)
        valid = (row < rows)[:, None] & (unit < UNITS)[None, :]
        seen = (member < batch)[:, None] & (unit < UNITS)[None, :]
        words = codes + row.to(tl.int64)[:, None] * (UNITS * BITS) + (unit * BITS)[None, :]
        spread_x = x + member[:, None] * (UNITS * UNIT) + unit[None, :]
        for chunk in tl.static_range(0, UNIT, CHUNK):
            entry = row[:, None] * (UNITS * UNIT // GROUP) + ((unit * UNIT + chunk) // GROUP)[None, :]
            step = load_scale(scale, scale_range, scale_exponent, entry, valid)
            shift = -step * load_zero(zero, entry, valid, BITS, ZERO)
            for code in tl.static_range(chunk, chunk + CHUNK, WINDOW):
                bits = load_window(words, valid, code * BITS, WINDOW * BITS)
                for lane in tl.static_range(WINDOW):
                    # The code becomes the low bits of the float 2²³: cheaper than a conversion from int.
                    level = (bits >> (lane * BITS)) & (2**BITS - 1) | 0x4B000000
                    weights = (level.to(tl.float32, bitcast=True) - 8388608.0) * step + shift
                    entries = tl.load(spread_x + (code + lane) * UNITS, mask=seen, other=0)
                    total = tl.dot(
                        entries.to(OPERAND),
                        tl.trans(weights.to(x.dtype.element_ty).to(OPERAND)),
                        total,
                        input_precision="ieee",
                    )
    if bias is not None:
        total += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)[None, :]
    target = (tl.program_id(1) * batch + member)[:, None] * rows + row[None, :]
    tl.store(
        out + target, total.to(out.dtype.element_ty), mask=(member < batch)[:, None] & (row < rows)[None, :]
    )


@triton.jit
def add_up(partial, bias, out, numbers, rows, SPLITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write out (numbers,) = sum of partial (SPLITS, numbers), part after part, plus bias (rows,)."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = number < numbers
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(SPLITS):
        total += tl.load(partial + part * numbers + number, mask=inside, other=0)
    if bias is not None:
        total += tl.load(bias + number % rows, mask=inside, other=0).to(tl.float32)
    tl.store(out + number, total.to(out.dtype.element_ty), mask=inside)
