"""Innermost loop of the product of bytes: codes of weights, unsigned, with codes of inputs, signed.

    dots(weights, inputs, stride, count, out)        # out[t, r] = Σ_k weight[r, k] · input[t, k], int32

A *tile* is the results of `TOKENS` tokens and `ROWS` rows, which stay in registers over all of k. Weights are
laid out (k / 4, row, 4): sixteen rows of four codes are one vector of 64 bytes, and four codes of a token,
repeated, are another. AVX-512 VNNI multiplies the two and adds the four products of each row to its sum, in
one instruction. Elsewhere LLVM makes of the same sums what the processor has, which is right and was not
timed.

Sums wrap at 2³¹, which a caller excludes.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Rows of a vector: 64 bytes."""
VECTORS, TOKENS = 2, 8
"""Vectors of rows, and tokens, of a tile: sixteen sums, enough for an instruction that takes five cycles."""
ROWS = LANES * VECTORS
HAS_VNNI = get_host_cpu_features().get("avx512vnni", False)
WHOLE, BYTES = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(8), 4 * LANES)
VNNI = "llvm.x86.avx512.vpdpbusd.512"

Add = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]
"""A function that emits sum + Σ of four products for each lane, from a sum, weights and inputs, all int32."""


def tile(has_vnni: bool) -> Callable[..., Any]:
    """Return `dots` for compiled code: all arguments but `count`, the fours of k, and `stride` are addresses.

    Args:
        has_vnni: use the instruction of AVX-512 VNNI.
    """
    add = _add_instruction if has_vnni else _add_general

    @intrinsic
    def tile_dots(_context, weights, inputs, stride, count, out):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            return _tile(builder, add, *arguments)

        return types.intp(*[types.intp] * 5), generate

    return tile_dots


def _tile(
    builder: ir.IRBuilder,
    add: Add,
    weights: ir.Value,
    inputs: ir.Value,
    stride: ir.Value,
    count: ir.Value,
    out: ir.Value,
) -> ir.Value:
    nothing = ir.Constant(WHOLE, [0] * LANES)
    sums = [[cgutils.alloca_once_value(builder, nothing) for _ in range(VECTORS)] for _ in range(TOKENS)]
    tokens = [builder.add(inputs, builder.mul(stride, stride.type(token))) for token in range(TOKENS)]
    with cgutils.for_range(builder, count) as loop:
        start = builder.add(weights, builder.mul(loop.index, loop.index.type(4 * ROWS)))
        rows = [_vector(builder, builder.add(start, start.type(4 * LANES * v))) for v in range(VECTORS)]
        for token in range(TOKENS):
            at = builder.add(tokens[token], builder.mul(loop.index, loop.index.type(4)))
            four = _repeated(builder, at)
            for total, codes in zip(sums[token], rows, strict=True):
                builder.store(add(builder, builder.load(total), codes, four), total)
    for k, total in enumerate(each for token in sums for each in token):
        target = builder.inttoptr(builder.add(out, out.type(4 * LANES * k)), WHOLE.as_pointer())
        builder.store(builder.load(total), target, align=4)
    return ir.Constant(ir.IntType(64), 0)


def _vector(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.load(builder.inttoptr(address, WHOLE.as_pointer()), align=4, typ=WHOLE)


def _repeated(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """Emit the four bytes at an address in every lane."""
    word = ir.IntType(32)
    four = builder.load(builder.inttoptr(address, word.as_pointer()), align=1, typ=word)
    undefined = ir.Constant(WHOLE, ir.Undefined)
    first = builder.insert_element(undefined, four, word(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(WHOLE, [0] * LANES))


def _add_instruction(builder: ir.IRBuilder, total: ir.Value, codes: ir.Value, inputs: ir.Value) -> ir.Value:
    kind = ir.FunctionType(WHOLE, [WHOLE, BYTES, BYTES])
    instruction = cgutils.get_or_insert_function(builder.module, kind, VNNI)
    return builder.call(instruction, [total, builder.bitcast(codes, BYTES), builder.bitcast(inputs, BYTES)])


def _add_general(builder: ir.IRBuilder, total: ir.Value, codes: ir.Value, inputs: ir.Value) -> ir.Value:
    for byte in range(4):
        down, up = (ir.Constant(WHOLE, [shift] * LANES) for shift in (8 * byte, 24 - 8 * byte))
        code = builder.and_(builder.lshr(codes, down), ir.Constant(WHOLE, [255] * LANES))
        entry = builder.ashr(builder.shl(inputs, up), ir.Constant(WHOLE, [24] * LANES))
        total = builder.add(total, builder.mul(code, entry))
    return total


def word_reader() -> Callable[..., Any]:
    """Return a function for compiled code that reads eight bytes, uint64, at any address."""

    @intrinsic
    def read_word(_context, address):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            kind = ir.IntType(64)
            return builder.load(builder.inttoptr(arguments[0], kind.as_pointer()), align=1, typ=kind)

        return types.uint64(types.intp), generate

    return read_word
