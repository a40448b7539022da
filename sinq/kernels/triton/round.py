"""Rounding to nearest and packing as a Triton kernel: it reads a weight once, and writes `bits` bits of it.

The kernel does `choose`, `assign` and `pack` of the definition, for uniform levels with a zero-point. A
program takes some rows of one group, as words of eight codes. It collects the bits of a word in an int64 and
stores the low `bits` bytes, in units as large as their alignment allows. A word must not cross groups for
that. Where the group size is no multiple of 8, codes are stored a byte each and packed afterwards.

Division is IEEE division here, and rounding is to even, as in the definition: codes differ only where a scale
differs in its last digit.
"""

import triton
import triton.language as tl


@triton.jit
def round_groups(  # type: ignore[no-untyped-def]
    weight,
    row_scale,
    col_scale,
    packed,
    scale,
    zero,
    rows,
    columns,
    tile_rows,
    range_floor,
    smallest,
    largest,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PACK: tl.constexpr,
):
    """Write codes, scale and zero of `BLOCK_ROWS` rows of one group; the grid is (row blocks, groups).

    A scale pointer that is None is 1. `packed` points to units of BITS & −BITS bytes if PACK, else to one
    byte per code. WORDS is a power of 2 with 8 · WORDS ≥ GROUP.
    """
    group, groups = tl.program_id(1), columns // GROUP
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    word, lane = tl.arange(0, WORDS), tl.arange(0, 8)
    column = word[:, None] * 8 + lane[None, :]
    inside = (column < GROUP)[None, :, :]
    valid = (row < rows)[:, None, None] & inside
    start = row.to(tl.int64) * columns + group * GROUP
    matrix = tl.load(weight + start[:, None, None] + column[None, :, :], mask=valid, other=0.0).to(tl.float32)
    if col_scale is not None:
        where = (row // tile_rows).to(tl.int64)[:, None, None] * columns + group * GROUP + column[None, :, :]
        matrix = tl.div_rn(matrix, tl.load(col_scale + where, mask=valid, other=1.0))
    entry = row.to(tl.int64) * groups + group
    if row_scale is not None:
        matrix = tl.div_rn(matrix, tl.load(row_scale + entry, mask=row < rows, other=1.0)[:, None, None])

    low = tl.min(tl.min(tl.where(inside, matrix, float("inf")), axis=2), axis=1)
    high = tl.max(tl.max(tl.where(inside, matrix, float("-inf")), axis=2), axis=1)
    step, offset = _range(low, high, range_floor, smallest, largest, 2**BITS - 1)
    tl.store(scale + entry, step, mask=row < rows)
    tl.store(zero + entry, offset, mask=row < rows)

    position = tl.div_rn(matrix, _alive(step)[:, None, None]) + offset[:, None, None]
    code = tl.minimum(tl.maximum(rint(position), 0.0), 2**BITS - 1)
    if PACK:
        value = tl.sum(code.to(tl.int64) << (lane * BITS).to(tl.int64)[None, None, :], axis=2)
        unit: tl.constexpr = BITS & -BITS
        units: tl.constexpr = BITS // unit
        first = (start // 8)[:, None] + word[None, :]
        for part in tl.static_range(units):
            piece = (value >> (8 * unit * part)).to(packed.dtype.element_ty)
            tl.store(
                packed + first * units + part, piece, mask=(row < rows)[:, None] & (word * 8 < GROUP)[None, :]
            )
    else:
        tl.store(packed + start[:, None, None] + column[None, :, :], code.to(tl.uint8), mask=valid)


@triton.jit
def _range(low, high, range_floor, smallest, largest, TOP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scale (0 for a group of zeros) and zero of groups in [low, high]; see `rounding._choose_range`."""
    step = tl.div_rn(tl.maximum(high - low, range_floor), TOP)
    step = tl.where(step > 0, step, tl.abs(low))
    offset = -rint(tl.div_rn(low, _alive(step)))
    widened = tl.where(offset < smallest, tl.div_rn(high, TOP - smallest), tl.div_rn(-low, largest))
    step = tl.where((offset < smallest) | (offset > largest), widened, step)
    return step, tl.minimum(tl.maximum(offset, smallest), largest)


@triton.jit
def _alive(step):  # type: ignore[no-untyped-def]
    return tl.where(step > 0, step, 1.0)


@triton.jit
def rint(x):  # type: ignore[no-untyped-def]
    """Nearest integer, ties to even: adding 2²³ leaves no bits for a fraction; beyond 2²³ there is none."""
    size = tl.abs(x)
    rounded = (size + 8388608.0) - 8388608.0
    rounded = tl.where(size < 8388608.0, rounded, size)
    return tl.where(x < 0, -rounded, rounded)
