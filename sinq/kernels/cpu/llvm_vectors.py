"""Innermost loops over quantized codes, written as vectors of eight 32-bit numbers: `product` and `widening`.

Eight lanes of codes (`codes.py`) are a *block*. Vectors are LLVM's own, of no one processor: two registers of
NEON, one of AVX2, half of AVX-512.

`product` works in integers: sixteen codes at a time, of 16 bits each, meet sixteen 16-bit entries of x, and
neighbouring products are added, in one instruction. That is four instructions for sixteen weights, where
codes turned to floats need three for eight.

`widening` writes floats. Code c of each lane is masked without a shift, which leaves a number of 2^(c · bits)
times its value. `factor` returns this factor, and the code that prepares x divides by it. A float holds such
a number exactly, so nothing is ever shifted down but the code at the top, which would be negative.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sinq.formats.grid import BITS

WIDTH = 8
BYTES = 4 * WIDTH
AHEAD = 2048
"""Bytes from a read to its prefetch.

2048 was the fastest of 0, 512, 1024, 2048 and 4096 on an AMD EPYC (Zen 4): 4096×4096 at 4 bits took 0.81 ms,
and 1.07 ms without a prefetch.
"""
FLAGS = ("contract", "nsz")  # permit fused multiply-adds
HAS_AVX2 = get_host_cpu_features().get("avx2", False)
WHOLE, REAL = ir.VectorType(ir.IntType(32), WIDTH), ir.VectorType(ir.FloatType(), WIDTH)
SHORT = ir.VectorType(ir.IntType(16), 2 * WIDTH)


def codes_per_lane(bits: int) -> int:
    """Return the number of codes that share 32 bits: eight of 2, 3 or 4 bits, four of 5, 6 or 8."""
    return 8 if bits <= 4 else 4


def factor(code: int, bits: int) -> float:
    """Return the factor by which a code is larger where it is masked without a shift."""
    return 1.0 if (code + 1) * bits == 32 else 2.0 ** (code * bits)


def product(parts: int) -> Callable[..., Any]:
    """Return a function for compiled code that returns Σ code · x · scale of a row, float32.

    It takes (bits, codes, x, scales, runs, per), where `codes`, `x` and `scales` are addresses. Sums over a
    block are exact integers; x is int16, laid out (block, code of a half, lane, half).

    Scales are those of the codes times those of x. With `parts` = 1 there is one scale for each of `runs`
    runs of `per` blocks. With `parts` = 2 or 8 there are `parts` scales for each block; `per` is 1, and a run
    is a block.
    """

    @intrinsic
    def row_product(_context, bits, codes, x, scales, runs, per):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            given_bits, *rest = arguments
            return _by_bits(
                builder, given_bits, ir.FloatType(), lambda bits: _row_product(builder, bits, parts, *rest)
            )

        return types.float32(*[types.intp] * 6), generate

    return row_product


def _row_product(
    builder: ir.IRBuilder,
    bits: int,
    parts: int,
    codes: ir.Value,
    x: ir.Value,
    scales: ir.Value,
    runs: ir.Value,
    per: ir.Value,
) -> ir.Value:
    total = cgutils.alloca_once_value(builder, ir.Constant(REAL, [0.0] * WIDTH))

    def add(block: ir.Value, run: ir.Value) -> None:
        offset = builder.mul(block, ir.Constant(block.type, codes_per_lane(bits) * bits))
        prefetch(builder, builder.add(codes, offset))
        part = builder.sitofp(_block(builder, bits, _lanes(builder, bits, codes, block), x, block), REAL)
        scale = _spread(builder, parts, scales, run)
        builder.store(_multiply_add(builder, part, scale, builder.load(total)), total)

    one = ir.Constant(per.type, 1)
    with builder.if_else(builder.icmp_signed("==", per, one), likely=True) as (alone, several):
        with alone, cgutils.for_range(builder, runs) as loop:
            add(loop.index, loop.index)
        with several, cgutils.for_range(builder, runs) as outer, cgutils.for_range(builder, per) as inner:
            add(builder.add(builder.mul(outer.index, per), inner.index), outer.index)
    return _sum(builder, builder.load(total))


def _by_bits(
    builder: ir.IRBuilder, bits: ir.Value, kind: ir.Type, generate: Callable[[int], ir.Value]
) -> ir.Value:
    """Emit a switch over the number of bits, known when the code runs, with a case of `generate` for each.

    Compiled functions for one number of bits each, made by a Python function, would not be found again in
    Numba's cache on disk.
    """
    result = cgutils.alloca_once(builder, kind)
    unsupported, after = builder.append_basic_block("other"), builder.append_basic_block("after")
    switch = builder.switch(bits, unsupported)
    for known_bits in BITS:
        case = builder.append_basic_block(f"bits{known_bits}")
        switch.add_case(ir.Constant(bits.type, known_bits), case)
        builder.position_at_end(case)
        builder.store(generate(known_bits), result)
        builder.branch(after)
    builder.position_at_end(unsupported)
    builder.unreachable()
    builder.position_at_end(after)
    return builder.load(result)


def _block(builder: ir.IRBuilder, bits: int, lanes: ir.Value, x: ir.Value, block: ir.Value) -> ir.Value:
    """Emit Σ code · x of each lane of a block: eight int32."""
    half = codes_per_lane(bits) // 2
    halves = _halves(builder, lanes, bits * half)
    part = ir.Constant(WHOLE, [0] * WIDTH)
    for k in range(half):
        code = builder.lshr(halves, ir.Constant(SHORT, [k * bits] * 2 * WIDTH))
        code = builder.and_(code, ir.Constant(SHORT, [(1 << bits) - 1] * 2 * WIDTH))
        entries = _load(builder, SHORT, x, _offset(builder, block, half, k))
        part = builder.add(part, _pairs(builder, code, entries))
    return part


def widening() -> Callable[..., Any]:
    """Return a function for compiled code that writes (code · scale − shift) · factor of a row to `out`.

    It takes (bits, codes, scales, shifts, out, blocks), where `codes`, `scales`, `shifts` and `out` are
    addresses and `blocks` is the number of blocks. Scales and shifts are per lane; `out` is float32
    (block, code, lane).
    """

    @intrinsic
    def row_widened(_context, bits, codes, scales, shifts, out, blocks):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            given_bits, *rest = arguments
            return _by_bits(
                builder, given_bits, ir.IntType(64), lambda bits: _row_widened(builder, bits, *rest)
            )

        return types.intp(*[types.intp] * 6), generate

    return row_widened


def _row_widened(
    builder: ir.IRBuilder,
    bits: int,
    codes: ir.Value,
    scales: ir.Value,
    shifts: ir.Value,
    out: ir.Value,
    blocks: ir.Value,
) -> ir.Value:
    with cgutils.for_range(builder, blocks) as loop:
        lane = _lanes(builder, bits, codes, loop.index)
        scale, shift = _load(builder, REAL, scales, loop.index), _load(builder, REAL, shifts, loop.index)
        for code in range(codes_per_lane(bits)):
            index = _offset(builder, loop.index, codes_per_lane(bits), code)
            moved = builder.fmul(shift, ir.Constant(REAL, [factor(code, bits)] * WIDTH), flags=FLAGS)
            value = builder.fmul(_code(builder, lane, code, bits), scale, flags=FLAGS)
            difference = builder.fsub(value, moved, flags=FLAGS)
            builder.store(difference, _pointer(builder, REAL, out, index), align=4)
    return ir.Constant(ir.IntType(64), 0)


def _code(builder: ir.IRBuilder, lane: ir.Value, code: int, bits: int) -> ir.Value:
    start = code * bits
    if start + bits == 32:
        return builder.sitofp(builder.lshr(lane, ir.Constant(WHOLE, [start] * WIDTH)), REAL)
    return builder.sitofp(builder.and_(lane, ir.Constant(WHOLE, [((1 << bits) - 1) << start] * WIDTH)), REAL)


def _lanes(builder: ir.IRBuilder, bits: int, codes: ir.Value, block: ir.Value) -> ir.Value:
    """Emit the lanes of a block, from its packed codes.

    The bits above a lane's last code are not cleared. The code may read BYTES bytes from the start of the
    block.
    """
    width = codes_per_lane(bits) * bits
    # Eight lanes of `width` bits are `width` bytes.
    start = builder.add(codes, builder.mul(block, ir.Constant(block.type, width)))
    if width == 32:
        return _read(builder, WHOLE, start)
    if width == 16:
        return builder.zext(_read(builder, ir.VectorType(ir.IntType(16), WIDTH), start), WHOLE)
    words = _read(builder, WHOLE, start)
    spare = width // 8  # lanes 4 … 7 begin here, in words of 32 bits, or half a word later
    both = [0, 1, 2, 3, spare, spare + 1, spare + 2, spare + 3]
    halves = builder.shuffle_vector(words, words, ir.Constant(WHOLE, both))
    offsets = [lane * width // 8 - (4 * spare - 16 if lane >= WIDTH // 2 else 0) for lane in range(WIDTH)]
    parts = builder.bitcast(halves, ir.VectorType(ir.IntType(8), BYTES))
    sources = [offset + min(byte, 2) for offset in offsets for byte in range(4)]
    order = ir.Constant(ir.VectorType(ir.IntType(32), BYTES), sources)
    lanes = builder.bitcast(builder.shuffle_vector(parts, parts, order), WHOLE)
    if width % 8:
        return builder.lshr(lanes, ir.Constant(WHOLE, [lane * width % 8 for lane in range(WIDTH)]))
    return lanes


def prefetch(builder: ir.IRBuilder, address: ir.Value, ahead: int = AHEAD) -> None:
    """Emit a prefetch of what lies `ahead` bytes later.

    A core that computes as it reads looks ahead too little to keep memory busy.
    """
    word, bytes_at = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [bytes_at, word, word, word])
    later = builder.inttoptr(builder.add(address, ir.Constant(address.type, ahead)), bytes_at)
    to_read, keep, data = word(0), word(3), word(1)
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [later, to_read, keep, data])


def _read(builder: ir.IRBuilder, kind: ir.Type, address: ir.Value) -> ir.Value:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1, typ=kind)


def _offset(builder: ir.IRBuilder, block: ir.Value, each: int, code: int) -> ir.Value:
    return builder.add(builder.mul(block, ir.Constant(block.type, each)), ir.Constant(block.type, code))


def _pointer(builder: ir.IRBuilder, kind: ir.Type, address: ir.Value, index: ir.Value) -> ir.Value:
    """Emit the pointer to vector `index` of an array at an address."""
    offset = builder.mul(index, ir.Constant(index.type, BYTES))
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _load(builder: ir.IRBuilder, kind: ir.Type, address: ir.Value, index: ir.Value) -> ir.Value:
    return _read(builder, kind, builder.add(address, builder.mul(index, ir.Constant(index.type, BYTES))))


def _multiply_add(builder: ir.IRBuilder, left: ir.Value, right: ir.Value, total: ir.Value) -> ir.Value:
    return builder.fadd(total, builder.fmul(left, right, flags=FLAGS), flags=FLAGS)


def _halves(builder: ir.IRBuilder, lanes: ir.Value, width: int) -> ir.Value:
    """Emit lanes of 2 · width bits as pairs of 16-bit numbers of `width` bits."""
    if width < 16:
        low = builder.and_(lanes, ir.Constant(WHOLE, [(1 << width) - 1] * WIDTH))
        rest = builder.lshr(lanes, ir.Constant(WHOLE, [width] * WIDTH))
        high = builder.shl(rest, ir.Constant(WHOLE, [16] * WIDTH))
        lanes = builder.or_(low, high)
    return builder.bitcast(lanes, SHORT)


def _pairs(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """Emit eight int32: exact products left · right of int16, with neighbours added.

    This is one instruction of AVX2, which LLVM does not always find by itself.
    """
    if HAS_AVX2:
        kind = ir.FunctionType(WHOLE, [SHORT, SHORT])
        instruction = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        return builder.call(instruction, [left, right])
    wide = ir.VectorType(ir.IntType(32), 2 * WIDTH)
    products = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
    even, odd = (ir.Constant(WHOLE, list(range(start, 2 * WIDTH, 2))) for start in (0, 1))
    undefined = ir.Constant(wide, ir.Undefined)
    lower = builder.shuffle_vector(products, undefined, even)
    upper = builder.shuffle_vector(products, undefined, odd)
    return builder.add(lower, upper)


def _spread(builder: ir.IRBuilder, parts: int, address: ir.Value, index: ir.Value) -> ir.Value:
    """Emit a vector of eight lanes from the `parts` float32 at an index, each spread over 8 / parts lanes."""
    kind = ir.VectorType(ir.FloatType(), parts)
    offset = builder.mul(index, ir.Constant(index.type, 4 * parts))
    values = _read(builder, kind, builder.add(address, offset))
    lanes = ir.Constant(WHOLE, [lane * parts // WIDTH for lane in range(WIDTH)])
    return builder.shuffle_vector(values, ir.Constant(kind, ir.Undefined), lanes)


def _sum(builder: ir.IRBuilder, total: ir.Value) -> ir.Value:
    for apart in (4, 2, 1):
        order = ir.Constant(WHOLE, [(lane + apart) % WIDTH for lane in range(WIDTH)])
        total = builder.fadd(total, builder.shuffle_vector(total, ir.Constant(REAL, ir.Undefined), order))
    return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))
