"""Innermost loop of balancing a tile: sums and sums of squares of columns, over a few rows.

    shifted = factor_r · entry_rj − mean_j        sum_j = Σ_r shifted,  square_j = Σ_r shifted²

The sums of sixteen columns stay in a register over all rows. Written as a loop over arrays, they are read and
written for every row, since the compiler cannot know that arrays do not overlap: six times as slow. Four
registers of columns go side by side, so that one addition need not wait for the one before. Each column's
rows are added in their order, on every processor.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Columns of a register; rows have a multiple of them."""
SIDE_BY_SIDE = 4
FLOAT, WIDE = ir.FloatType(), ir.IntType(64)
VECTOR, NOTHING = ir.VectorType(FLOAT, LANES), ir.Constant(ir.VectorType(FLOAT, LANES), [0.0] * LANES)
FUSED = ("contract",)


@intrinsic
def _column_sums(_context, entries, stride, rows, factors, means, sums, squares, registers):  # type: ignore[no-untyped-def]
    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        *numbers, registers = arguments
        whole = builder.udiv(registers, WIDE(SIDE_BY_SIDE))
        done = builder.mul(whole, WIDE(SIDE_BY_SIDE))
        _emit(builder, numbers, WIDE(0), whole, SIDE_BY_SIDE)
        _emit(builder, numbers, done, builder.sub(registers, done), 1)
        return ir.Constant(WIDE, 0)

    return types.intp(*[types.intp] * 8), generate


column_sums: Any = _column_sums
"""Write the sums, for compiled code. Arguments are addresses of float32 numbers, but for `stride`, the bytes
between rows of entries, `rows`, and `registers`, the number of sixteens of columns."""


def _emit(
    builder: ir.IRBuilder, numbers: list[ir.Value], first: ir.Value, times: ir.Value, count: int
) -> None:
    """Emit the loop over `times` groups of `count` registers of columns, beginning with register `first`."""
    entries, stride, rows, factors, means, *results = numbers
    with cgutils.for_range(builder, times) as group:
        start = builder.add(first, builder.mul(group.index, WIDE(count)))
        offsets = [builder.mul(builder.add(start, WIDE(k)), WIDE(4 * LANES)) for k in range(count)]
        middle = [_load(builder, means, offset) for offset in offsets]
        totals = [[cgutils.alloca_once(builder, VECTOR) for _ in offsets] for _ in results]
        for total in (*totals[0], *totals[1]):
            builder.store(NOTHING, total)
        with cgutils.for_range(builder, rows) as row:
            factor = _repeated(builder, builder.add(factors, builder.mul(row.index, WIDE(4))))
            line = builder.add(entries, builder.mul(row.index, stride))
            for k, offset in enumerate(offsets):
                scaled = builder.fmul(factor, _load(builder, line, offset), flags=FUSED)
                shifted = builder.fsub(scaled, middle[k], flags=FUSED)
                _add(builder, totals[0][k], shifted)
                _add(builder, totals[1][k], builder.fmul(shifted, shifted, flags=FUSED))
        for result, total in zip(results, totals, strict=True):
            for offset, each in zip(offsets, total, strict=True):
                builder.store(builder.load(each), _pointer(builder, result, offset), align=4)


def _add(builder: ir.IRBuilder, total: ir.Value, value: ir.Value) -> None:
    builder.store(builder.fadd(builder.load(total), value, flags=FUSED), total)


def _pointer(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.inttoptr(builder.add(address, offset), VECTOR.as_pointer())


def _load(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.load(_pointer(builder, address, offset), align=4, typ=VECTOR)


def _repeated(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """Emit the float at an address in every lane."""
    value = builder.load(builder.inttoptr(address, FLOAT.as_pointer()), align=4, typ=FLOAT)
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.IntType(32)(0))
    lanes = ir.VectorType(ir.IntType(32), LANES)
    return builder.shuffle_vector(first, undefined, ir.Constant(lanes, [0] * LANES))
