"""Product x Ŵᵀ + b for one row of x, in Triton: a sum of products straight from packed codes.

With one row every weight is used once, so memory should be the limit; in fact instructions are, unless each
weight costs few. Here a weight costs little more than a mask and a multiply-add. A window of codes is cut out
of the packed words, and a code is masked without being shifted. The masked bits, read as the bits of a
float32, are the number code · 2^(position − 149) exactly, for a code at bit `position`: below 2²⁴ times the
smallest float32, floats (subnormal, and the first normal ones) are as evenly spaced as integers, and
multiply-adds take them at full speed. x · 2^(SHIFT − position), once per column, cancels the position; at the
end of a group SHIFT is cancelled. No single code is shifted or converted; only the codes above bit 24 of a
window are, together, shifted into the lower half.

A thread has one unit of 32 codes, `bits` words, of each of the block's rows; so nothing moves between threads
before the end, and x, times its column scale, is read once for all the rows. Units are the last dimension of
every tensor for that reason: Triton spreads the last dimension over threads.

Codes of 8 bits lie whole in words: there, a thread loads its unit 16 bytes at once. With words loaded one by
one, which lie 32 bytes apart, they were slower than bf16.

Measured on an H200 against 4.2 TB/s of a copy, 17408×5120, groups of 64: 4 bits reach 78 % (2.0 × bf16), 3
bits 73 % (2.4 ×), 2 bits 54 % (2.5 ×), 8 bits 89 % (1.2 ×; a kernel with this loop, alone). A program needs
several blocks of columns: with 4096 columns, 4 and 8 bits reach 50 %. Loading units of 2 and 4 bits 16 bytes
at once was slower, as were accumulating by position instead of in a tree (fewer instructions, more registers)
and software pipelining (`num_stages`).

Not covered: |x · col_scale| of 2²⁸ (2.7e8) and more, where x · 2^SHIFT is no float32.
"""

import triton
import triton.language as tl

from sinq.kernels.triton.dequantize import load_scale, load_zero

UNIT = tl.constexpr(32)
"""Codes of a unit: `bits` int32 words hold them."""
SHIFT = tl.constexpr(100)
"""Power of 2 that x is multiplied by, so that its products with the bits of a code are not subnormal."""
EXPONENT = tl.constexpr(149)
"""Negated exponent of the smallest float32, 2^−149."""
WARPS = 2560
"""Warps that an H200 runs at once, approximately, with the registers that these take."""


def window(bits: int) -> tuple[int, int]:
    """Return the codes of a window (≤ 32 bits) and of each of its parts (≤ 24 bits), both powers of 2."""
    return {2: (8, 8), 3: (8, 8), 4: (8, 4), 5: (4, 4), 6: (4, 4), 8: (4, 2)}[bits]


def block(rows: int, units: int, bits: int) -> tuple[int, int]:
    """Return the rows of Ŵ in a block, and the warps of a program, each with 32 units.

    Warps are as many as keep all multiprocessors busy and few threads idle.
    """
    if bits == 8:
        return 8, 1
    useful = (warps for warps in (2, 4) if rows * warps <= 8 * WARPS and units >= 2 * 32 * warps)
    return 8, max(useful, default=1)


@triton.jit
def multiply_vector(  # type: ignore[no-untyped-def]
    x, codes, scale, zero, col_scale, scale_range, scale_exponent, bias, out, rows,
    UNITS: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, BITS: tl.constexpr,
    WINDOW: tl.constexpr, PART: tl.constexpr, ZERO: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_UNITS: tl.constexpr,
):  # fmt: skip
    """Write out (rows,) = Ŵ x + bias, for BLOCK_ROWS rows of Ŵ with UNITS units each.

    CHUNK is the number of adjacent codes that lie in one group and one unit.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    lane = tl.arange(0, WINDOW)
    part, inner = (lane // PART * PART * BITS).to(tl.uint32), (lane % PART * BITS).to(tl.uint32)
    mask = (2**BITS - 1 + 0 * inner) << inner
    power = tl.exp2(-inner.to(tl.float32) + SHIFT)
    total = tl.zeros([BLOCK_ROWS, BLOCK_UNITS], tl.float32)
    for start in range(0, UNITS, BLOCK_UNITS):
        unit = start + tl.arange(0, BLOCK_UNITS)
        inside = unit < UNITS
        valid = (row < rows)[:, None] & inside[None, :]
        first = row.to(tl.int64)[:, None] * (UNITS * BITS) + (unit * BITS)[None, :]
        for chunk in tl.static_range(0, UNIT, CHUNK):
            products = tl.zeros([BLOCK_ROWS, BLOCK_UNITS], tl.float32)
            sums = tl.zeros([BLOCK_UNITS], tl.float32)
            if BITS == 8 and CHUNK == UNIT:  # whole codes in words: a thread loads 16 bytes at once
                words = tl.arange(0, BITS)
                column = (words * WINDOW)[None, :, None] + lane[:, None, None] + (unit * UNIT)[None, None, :]
                entries = _entries(x, col_scale, column, inside[None, None, :])
                sums += tl.sum(tl.sum(entries, axis=0), axis=0)
                bits = tl.load(
                    codes + first[None, :, :] + words[:, None, None], mask=valid[None, :, :], other=0
                ).to(tl.uint32, bitcast=True)
                level = (bits[None, :, :, :] >> part[:, None, None, None]) & mask[:, None, None, None]
                scaled = (entries * power[:, None, None])[:, :, None, :]
                products += tl.sum(tl.sum(level.to(tl.float32, bitcast=True) * scaled, axis=0), axis=0)
            else:
                for code in tl.static_range(chunk, chunk + CHUNK, WINDOW):
                    column = (code + lane)[:, None] + (unit * UNIT)[None, :]
                    entries = _entries(x, col_scale, column, inside[None, :])
                    sums += tl.sum(entries, axis=0)
                    bits = load_window(codes + first, valid, code * BITS, WINDOW * BITS)
                    level = (bits[None, :, :] >> part[:, None, None]) & mask[:, None, None]
                    scaled = (entries * power[:, None])[:, None, :]
                    products += tl.sum(level.to(tl.float32, bitcast=True) * scaled, axis=0)
            entry = row[:, None] * (UNITS * UNIT // GROUP) + ((unit * UNIT + chunk) // GROUP)[None, :]
            offset = load_zero(zero, entry, valid, BITS, ZERO)
            step = load_scale(scale, scale_range, scale_exponent, entry, valid)
            total += step * (products * 2.0 ** (EXPONENT - SHIFT) - offset * sums[None, :])
    result = tl.sum(total, axis=1)
    if bias is not None:
        result += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _entries(x, col_scale, column, inside):  # type: ignore[no-untyped-def]
    """Entries of x times their column scales, float32."""
    entries = tl.load(x + column, mask=inside, other=0).to(tl.float32)
    if col_scale is not None:
        entries = entries * tl.load(col_scale + column, mask=inside, other=0).to(tl.float32)
    return entries


@triton.jit
def load_window(words, valid, START: tl.constexpr, LENGTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bits START … START + LENGTH at the pointer `words`, as uint32; the bits above them are undefined."""
    shift: tl.constexpr = START % 32
    low = tl.load(words + START // 32, mask=valid, other=0).to(tl.uint32, bitcast=True) >> shift
    if shift + LENGTH > 32:
        high = tl.load(words + START // 32 + 1, mask=valid, other=0).to(tl.uint32, bitcast=True)
        low = low | (high << (32 - shift))
    return low
