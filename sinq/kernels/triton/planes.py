"""Bit planes on CUDA: the sums of a block of 32 columns, counted in one word for each plane of both operands.

Both operands are signed, centred codes of weights and codes of inputs, and the top plane of each weighs less
than nothing. The population count is written out in shifts and sums, which LLVM recognizes as the processor's
`popc`; so the interpreter runs the same source. Tensor cores for single bits are not used.
"""

import triton
import triton.language as tl


@triton.jit
def popcount(word):  # type: ignore[no-untyped-def]
    """Number of bits that are set in each uint32 (Hacker's Delight, section 5-1)."""
    pairs = word - ((word >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return (((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


@triton.jit
def plane_word(codes, PLANE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bit PLANE of signed codes (rows, BLOCK ≤ 32), one uint32 for each row."""
    column = tl.arange(0, BLOCK).to(tl.uint32)
    bit = (codes.to(tl.int32).to(tl.uint32, bitcast=True) >> PLANE) & 1
    return tl.sum(bit << column[None, :], axis=1)


@triton.jit
def count_planes(  # type: ignore[no-untyped-def]
    entries, weights, INPUT_BITS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Σ of products of signed codes (tokens, BLOCK) and (rows, BLOCK), int32 (tokens, rows)."""
    total = tl.zeros([entries.shape[0], weights.shape[0]], tl.int32)
    for i in tl.static_range(INPUT_BITS):
        x = plane_word(entries, i, BLOCK)
        for j in tl.static_range(BITS):
            both = popcount(x[:, None] & plane_word(weights, j, BLOCK)[None, :]).to(tl.int32) << (i + j)
            if (i == INPUT_BITS - 1) == (j == BITS - 1):
                total += both
            else:
                total -= both
    return total
