"""Innermost loops of bit planes: packing of codes to words of bits, and counting where two words agree.

A word has 32 columns of one row in one plane. Weights are laid out (plane, word, row): the words of sixteen
rows are one vector of 64 bytes, which meets a word of a token, repeated, with AND; the bits that are left are
counted in each lane. LLVM makes of `ctpop` what the processor has, when this is compiled: one instruction
with AVX-512 VPOPCNTDQ, a table of nibbles with AVX2, and single words without either.

All planes of an input are unrolled, so that a vector of weights is loaded once for all of them: there is a
function for each number of bits.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sinq.kernels.cpu.dots import LANES, ROWS, VECTORS
from sinq.kernels.cpu.llvm_vectors import prefetch

COLUMNS = 32
"""Columns of a word."""
AHEAD = 4096
"""Bytes from a read of weights to its prefetch.

Of 1024 to 16384, in doublings, 4096 was the fastest at 8 bits and within a tenth of the fastest elsewhere,
for one token of 4096×4096 on a Zen 5.
"""
WORD, BYTE = ir.IntType(32), ir.IntType(8)
WORDS, BYTES = ir.VectorType(WORD, LANES), ir.VectorType(BYTE, COLUMNS)
POPCOUNT = f"llvm.ctpop.v{LANES}i32"
NOTHING = ir.Constant(WORDS, [0] * LANES)


def packer() -> Callable[..., Any]:
    """Return a function for compiled code that packs 32 codes: `pack(codes, bits, out, stride)`.

    `codes` and `out` are addresses, of 32 bytes and of the word of the first plane; those of the next planes
    are `stride` words away.
    """

    @intrinsic
    def pack(_context, codes, bits, out, stride):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            return _pack(builder, *arguments)

        return types.intp(*[types.intp] * 4), generate

    return pack


def _pack(
    builder: ir.IRBuilder, codes: ir.Value, bits: ir.Value, out: ir.Value, stride: ir.Value
) -> ir.Value:
    read = builder.load(builder.inttoptr(codes, BYTES.as_pointer()), align=1, typ=BYTES)
    with cgutils.for_range(builder, bits) as loop:
        bit = builder.shl(BYTE(1), builder.trunc(loop.index, BYTE))
        found = builder.and_(read, _repeated(builder, bit, BYTES))
        is_set = builder.icmp_unsigned("!=", found, ir.Constant(BYTES, [0] * COLUMNS))
        at = builder.add(out, builder.mul(loop.index, builder.mul(stride, stride.type(4))))
        builder.store(builder.bitcast(is_set, WORD), builder.inttoptr(at, WORD.as_pointer()), align=4)
    return ir.Constant(ir.IntType(64), 0)


def counter(bits: int) -> Callable[..., Any]:
    """Return a function for compiled code: `count(weights, inputs, planes, words, out)`.

    It writes Σ_i Σ_j 2^(i+j) popcount(x⁽ⁱ⁾ AND w⁽ʲ⁾) for a token and `dots.ROWS` rows, int32. Weights are
    unsigned; the top plane of the inputs counts as −2^(bits − 1), as in two's complement. Addresses are those
    of weights (planes, words, rows), of inputs (bits, words) and of results.

    Args:
        bits: planes of the inputs.
    """

    @intrinsic
    def count(_context, weights, inputs, planes, words, out):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            return _count(builder, bits, *arguments)

        return types.intp(*[types.intp] * 5), generate

    return count


def _count(
    builder: ir.IRBuilder,
    bits: int,
    weights: ir.Value,
    inputs: ir.Value,
    planes: ir.Value,
    words: ir.Value,
    out: ir.Value,
) -> ir.Value:
    """Emit both sums by Horner's rule, from the top planes down."""
    popcount = cgutils.get_or_insert_function(builder.module, ir.FunctionType(WORDS, [WORDS]), POPCOUNT)
    totals = [cgutils.alloca_once_value(builder, NOTHING) for _ in range(VECTORS)]
    counts = [[cgutils.alloca_once(builder, WORDS) for _ in range(VECTORS)] for _ in range(bits)]
    size = builder.mul(words, words.type(4 * ROWS))
    with cgutils.for_range(builder, planes) as outer:
        plane = builder.sub(builder.sub(planes, planes.type(1)), outer.index)
        start = builder.add(weights, builder.mul(plane, size))
        for each in (each for of_bit in counts for each in of_bit):
            builder.store(NOTHING, each)
        with cgutils.for_range(builder, words) as inner:
            at = builder.add(start, builder.mul(inner.index, words.type(4 * ROWS)))
            for v in range(VECTORS):
                prefetch(builder, builder.add(at, at.type(4 * LANES * v)), AHEAD)
            rows = [_load(builder, builder.add(at, at.type(4 * LANES * v)), WORDS) for v in range(VECTORS)]
            for bit in range(bits):
                word = builder.add(builder.mul(words, words.type(bit)), inner.index)
                x = _load(builder, builder.add(inputs, builder.mul(word, word.type(4))), WORD)
                repeated = _repeated(builder, x, WORDS)
                for row, total in zip(rows, counts[bit], strict=True):
                    both = builder.call(popcount, [builder.and_(row, repeated)])
                    builder.store(builder.add(builder.load(total), both), total)
        for v, total in enumerate(totals):
            found = builder.sub(NOTHING, builder.load(counts[-1][v]))
            for bit in reversed(range(bits - 1)):
                found = builder.add(builder.add(found, found), builder.load(counts[bit][v]))
            doubled = builder.add(builder.load(total), builder.load(total))
            builder.store(builder.add(doubled, found), total)
    for v, total in enumerate(totals):
        target = builder.inttoptr(builder.add(out, out.type(4 * LANES * v)), WORDS.as_pointer())
        builder.store(builder.load(total), target, align=4)
    return ir.Constant(ir.IntType(64), 0)


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4, typ=kind)


def _repeated(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """Emit a value in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, WORD(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(WORD, kind.count), [0] * kind.count)
    )
