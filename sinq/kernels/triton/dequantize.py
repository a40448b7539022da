"""Loads of packed codes, scales and zeros for all Triton kernels on compressed weights, and dequantization.

Codes are read as they are stored (`sinq/formats/packing.py`). A word is eight codes in `bits` bytes, and all
rows start on a multiple of four bytes if they have a multiple of 32 codes. A word lies in one or two int32s,
which are read and shifted; nothing is padded or repacked. A word never crosses groups if a group has a
multiple of 8 codes, so scale and zero are read once per word.

Scales and zeros are read as `sinq/formats/stored_scales.py` stores them: float32, float16 (with an exponent
where there is one), or a byte.
"""

import triton
import triton.language as tl

ZERO_STORED, ZERO_BYTE, ZERO_CONSTANT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Kinds of zeros: a stored float; an int8 relative to the centre of the codes; the centre."""
SCALE_BLOCK = tl.constexpr(32)
"""Scales that share a range, where each is stored in a byte (`stored_scales.BLOCK`)."""


@triton.jit
def load_codes(codes, row, word, valid, WORDS_PER_ROW: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes of words `word` (words,) in rows `row` (rows,), float32 (rows, words, 8); `codes` is of int32."""
    code = load_whole_codes(codes, row, word, valid, WORDS_PER_ROW, BITS)
    # The code becomes the low bits of the float 2²³, which is then subtracted: a conversion from int has a
    # quarter of the rate of these two.
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def load_whole_codes(codes, row, word, valid, WORDS_PER_ROW: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes as `load_codes` returns them, but int32."""
    byte = word * BITS
    first = row.to(tl.int64)[:, None] * (WORDS_PER_ROW * BITS // 4) + (byte // 4)[None, :]
    shift = (byte % 4 * 8)[None, :]
    value = tl.load(codes + first, mask=valid, other=0)
    lane = tl.arange(0, 8) * BITS
    if BITS == 2 or BITS == 4:
        code = (value >> shift)[:, :, None] >> lane[None, None, :]
    else:
        high = tl.load(codes + first + 1, mask=valid & (shift + 8 * BITS > 32), other=0)
        whole = (value.to(tl.int64) & 0xFFFFFFFF) | (high.to(tl.int64) << 32)
        code = ((whole >> shift)[:, :, None] >> lane.to(tl.int64)[None, None, :]).to(tl.int32)
    return code & (2**BITS - 1)


@triton.jit
def load_scale(scale, scale_range, scale_exponent, entry, valid):  # type: ignore[no-untyped-def]
    """Scales at flat positions `entry`, float32; a pointer is None where the tensor is not stored."""
    stored = tl.load(scale + entry, mask=valid, other=0).to(tl.float32)
    if scale_range is not None:
        block = entry // SCALE_BLOCK * 2
        low = tl.load(scale_range + block, mask=valid, other=0).to(tl.float32)
        step = tl.load(scale_range + block + 1, mask=valid, other=0).to(tl.float32)
        stored = tl.exp2(low + stored * step)
    if scale_exponent is not None:
        stored = stored * tl.exp2(tl.load(scale_exponent).to(tl.float32))
    return stored


@triton.jit
def load_zero(zero, entry, valid, BITS: tl.constexpr, ZERO: tl.constexpr):  # type: ignore[no-untyped-def]
    """Zeros at flat positions `entry`, float32."""
    if ZERO == ZERO_CONSTANT:
        stored = tl.zeros(entry.shape, tl.float32) + 2 ** (BITS - 1)
    else:
        stored = tl.load(zero + entry, mask=valid, other=0).to(tl.float32)
        if ZERO == ZERO_BYTE:
            stored += 2 ** (BITS - 1)
    return stored


@triton.jit
def dequantize_block(  # type: ignore[no-untyped-def]
    codes, scale, zero, col_scale, scale_range, scale_exponent, out, rows,
    WORDS_PER_ROW: tl.constexpr, GROUP_WORDS: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_WORDS: tl.constexpr,
):  # fmt: skip
    """Write one block of the matrix (rows, 8 · WORDS_PER_ROW) to `out`, row-major, in the dtype of `out`.

    The grid is (row blocks, word blocks).
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    word = tl.program_id(1) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    valid = (row < rows)[:, None] & (word < WORDS_PER_ROW)[None, :]
    entry = row[:, None] * (WORDS_PER_ROW // GROUP_WORDS) + (word // GROUP_WORDS)[None, :]
    level = (
        load_codes(codes, row, word, valid, WORDS_PER_ROW, BITS)
        - load_zero(zero, entry, valid, BITS, ZERO)[:, :, None]
    )
    matrix = level * load_scale(scale, scale_range, scale_exponent, entry, valid)[:, :, None]
    column = word[:, None] * 8 + tl.arange(0, 8)[None, :]
    if col_scale is not None:
        matrix = (
            matrix
            * tl.load(col_scale + column, mask=(word < WORDS_PER_ROW)[:, None], other=0).to(tl.float32)[
                None, :, :
            ]
        )
    target = row.to(tl.int64)[:, None, None] * (WORDS_PER_ROW * 8) + column[None, :, :]
    tl.store(out + target, matrix.to(out.dtype.element_ty), mask=valid[:, :, None])
