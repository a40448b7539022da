"""Transposition of a square of float32 numbers in vector registers, for compiled code.

Scales are stored row after row, and rows are the lanes of the products of integers. Number by number, turning
them costs more than counting a few bits of a small group does; in registers it is four rounds of sixteen
instructions for 256 numbers.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

SIDE = 16
ROW = ir.VectorType(ir.FloatType(), SIDE)


def transposer() -> Callable[..., Any]:
    """Return a function for compiled code: `transpose(source, stride, target, target_stride)`.

    It writes the transpose of a square of `SIDE` rows. `source` and `target` are addresses; strides are from
    row to row, in numbers.
    """

    @intrinsic
    def transpose(_context, source, stride, target, target_stride):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            return _transpose(builder, *arguments)

        return types.intp(*[types.intp] * 4), generate

    return transpose


def _transpose(
    builder: ir.IRBuilder, source: ir.Value, stride: ir.Value, target: ir.Value, target_stride: ir.Value
) -> ir.Value:
    rows = [builder.load(_row(builder, source, stride, k), align=4, typ=ROW) for k in range(SIDE)]
    distance = SIDE // 2
    while distance:
        for k in range(SIDE):
            if not k & distance:
                pair = rows[k], rows[k + distance]
                rows[k], rows[k + distance] = _exchanged(builder, *pair, distance)
        distance //= 2
    for k, row in enumerate(rows):
        builder.store(row, _row(builder, target, target_stride, k), align=4)
    return ir.Constant(ir.IntType(64), 0)


def _exchanged(
    builder: ir.IRBuilder, upper: ir.Value, lower: ir.Value, distance: int
) -> tuple[ir.Value, ir.Value]:
    """Emit the exchange of the upper row's later lanes with the lower row's earlier ones, in each block."""
    order = ir.VectorType(ir.IntType(32), SIDE)
    earlier = [lane if not lane & distance else SIDE + lane - distance for lane in range(SIDE)]
    later = [lane + distance if not lane & distance else SIDE + lane for lane in range(SIDE)]
    first, second = (
        builder.shuffle_vector(upper, lower, ir.Constant(order, lanes)) for lanes in (earlier, later)
    )
    return first, second


def _row(builder: ir.IRBuilder, address: ir.Value, stride: ir.Value, index: int) -> ir.Value:
    offset = builder.mul(stride, stride.type(4 * index))
    return builder.inttoptr(builder.add(address, offset), ROW.as_pointer())
