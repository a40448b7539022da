"""The product of bytes by the matrix unit of newer processors (AMX): what `dots.py` does with vectors.

A tile register holds 16 rows of up to 64 bytes. One instruction multiplies a tile of inputs (token, column),
signed, by one of weights (column / 4, row, 4), unsigned, and adds to a tile of int32 (token, row): 16 × 16
sums of 64 products. Two tiles of weights share each tile of inputs, so that `dots.ROWS` rows are a tile here
as well.

A process asks Linux once whether it may use the registers, which is not certain even where the processor has
them: compiled code has both ways, and the job says which (`arguments.py`).

Source: Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from sinq.kernels.cpu import dots

TOKENS = 16
HAS_TILES = get_host_cpu_features().get("amx-int8", False)
LONGEST = 64
"""Bytes of a row of a register."""
SUMS, INPUTS, WEIGHTS = (0, 1), 2, (3, 4)
"""Numbers of the registers."""
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
BYTE, WIDE, POINTER = ir.IntType(8), ir.IntType(64), ir.IntType(8).as_pointer()


@cache
def permitted() -> bool:
    """Return True if the processor has the registers and Linux lets this process use them."""
    if not HAS_TILES or sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0)


def product() -> Callable[..., Any]:
    """Return a function for compiled code: that of `dots.tile` for TOKENS tokens, at a configured depth.

    It takes (weights, inputs, stride, depth, count, out); `count` is the number of depths of k. Where the
    processor has no registers, it is empty.
    """

    @intrinsic
    def tile_product(_context, weights, inputs, stride, depth, count, out):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            if HAS_TILES:
                _product(builder, *arguments)
            return ir.Constant(WIDE, 0)

        return types.intp(*[types.intp] * 6), generate

    return tile_product


def _product(
    builder: ir.IRBuilder,
    weights: ir.Value,
    inputs: ir.Value,
    stride: ir.Value,
    depth: ir.Value,
    count: ir.Value,
    out: ir.Value,
) -> None:
    for tile in SUMS:
        _emit(builder, "tilezero", BYTE(tile))
    with cgutils.for_range(builder, count) as loop:
        start = builder.mul(loop.index, depth)
        _emit(builder, "tileloadd64", BYTE(INPUTS), _at(builder, inputs, start), stride)
        first = builder.add(weights, builder.mul(start, WIDE(dots.ROWS)))
        for half, (total, tile) in enumerate(zip(SUMS, WEIGHTS, strict=True)):
            address = _at(builder, first, WIDE(LONGEST * half))
            _emit(builder, "tileloadd64", BYTE(tile), address, WIDE(4 * dots.ROWS))
            _emit(builder, "tdpbsud", BYTE(total), BYTE(INPUTS), BYTE(tile))
    for half, total in enumerate(SUMS):
        address = _at(builder, out, WIDE(LONGEST * half))
        _emit(builder, "tilestored64", BYTE(total), address, WIDE(4 * dots.ROWS))


def _at(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.inttoptr(builder.add(address, offset), POINTER)


def _emit(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _statement(name: str) -> Callable[..., Any]:
    """Return a function for compiled code of one instruction on a configuration, 64 bytes at an address."""

    @intrinsic
    def instruction(_context, address):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            if HAS_TILES:
                _emit(builder, name, builder.inttoptr(arguments[0], POINTER))
            return ir.Constant(WIDE, 0)

        return types.intp(types.intp), generate

    return instruction


load, store = _statement("ldtilecfg"), _statement("sttilecfg")


@njit
def configure(depth):  # type: ignore[no-untyped-def]
    """Give this thread's registers their shapes, and return the configuration before, for `restore`.

    Libraries that use them too, as torch's, may count on theirs.
    """
    before, shapes = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    store(before.ctypes.data)
    shapes[0] = 1
    for tile in range(5):
        shapes[16 + 2 * tile] = depth if tile == INPUTS else LONGEST
        shapes[48 + tile] = depth // 4 if tile > INPUTS else TOKENS
    load(shapes.ctypes.data)
    # Read once more, so that it lives until it is loaded.
    return before if shapes[0] == 1 else shapes


@njit
def restore(before):  # type: ignore[no-untyped-def]
    """Give this thread's registers a configuration; that of zeros frees them."""
    load(before.ctypes.data)
    return before[0]
