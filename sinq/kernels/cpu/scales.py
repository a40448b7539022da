"""Conversion of stored scales and zeros to floats, in compiled code: from float16, float32 or 8-bit scales.

The 8-bit form is that of `sinq/formats/stored_scales.py`.

Loops are over arrays made from addresses: the compiler must assume that an index into a slice may be
negative, and then does not vectorize.
"""

import numpy as np
from numba import carray, njit

from sinq.formats.stored_scales import BLOCK
from sinq.kernels.cpu.arguments import (
    AUXILIARY,
    BITS,
    COLUMNS,
    EXPONENT,
    FAST,
    GROUP,
    RANGE,
    SCALE,
    ZERO,
    f32,
    i32,
    pointer,
)
from sinq.kernels.cpu.llvm_vectors import WIDTH


@njit(fastmath=FAST)
def decode(field, row, count, scale, zero):  # type: ignore[no-untyped-def]
    """Write the first `count` scales, and scale · zero, from `row` on."""
    decode_apart(field, row, count, scale, zero)
    for g in range(count):
        zero[g] *= scale[g]


@njit(fastmath=FAST)
def decode_apart(field, row, count, scale, zero):  # type: ignore[no-untyped-def]
    """Write the first `count` scales and zeros from `row` on."""
    start, auxiliary = row * (field[COLUMNS] // field[GROUP]), field[AUXILIARY]
    if auxiliary == 8:
        _bytes_to_scales(field, start, count, scale)
    else:
        floats(field[SCALE], start, count, auxiliary, scale)
    if field[EXPONENT] != 0:
        unit = f32(2.0 ** np.float64(carray(pointer(field[EXPONENT]), 1, np.int8)[0]))
        for g in range(count):
            scale[g] *= unit
    centre = f32(1 << (field[BITS] - 1))
    if field[ZERO] == 0:
        for g in range(count):
            zero[g] = centre
    elif auxiliary == 8:
        stored = carray(pointer(field[ZERO] + start), count, np.int8)
        for g in range(count):
            zero[g] = f32(stored[g]) + centre
    else:
        floats(field[ZERO], start, count, auxiliary, zero)


@njit
def spread(values, out, rows, groups, each):  # type: ignore[no-untyped-def]
    """Write the value of each group to each of its lanes.

    Eight copies are one instruction where the compiler knows their number.
    """
    if each % WIDTH == 0:
        filled = 0
        for part in range(rows * groups):
            value = values[part]
            for _ in range(each // WIDTH):
                for k in range(WIDTH):
                    out[filled + k] = value
                filled += WIDTH
    else:
        row = -(-groups * each // WIDTH) * WIDTH
        for i in range(rows):
            for g in range(groups):
                for k in range(each):
                    out[i * row + g * each + k] = values[i * groups + g]


@njit(fastmath=FAST)
def floats(address, start, count, bits, out):  # type: ignore[no-untyped-def]
    """Convert stored floats of 16 or 32 bits to float32.

    The bits of a float16, shifted, are a float32 that is 2^112 times too small.
    """
    if bits == 32:
        whole = carray(pointer(address + 4 * start), count, np.float32)
        for k in range(count):
            out[k] = whole[k]
        return
    halves, moved = carray(pointer(address + 2 * start), count, np.uint16), out.view(np.int32)
    for k in range(count):
        half = i32(halves[k])
        moved[k] = (half & i32(0x7FFF)) << i32(13) | (half & i32(0x8000)) << i32(16)
    for k in range(count):
        out[k] *= f32(2.0**112)


@njit(fastmath=FAST)
def _bytes_to_scales(field, start, count, out):  # type: ignore[no-untyped-def]
    """Write scales 2^(low + step · byte); see `sinq/formats/stored_scales.py`."""
    ranges, k = np.empty(2, np.float32), 0
    while k < count:
        block = (start + k) // BLOCK
        floats(field[RANGE], 2 * block, 2, 16, ranges)
        end = min(count, (block + 1) * BLOCK - start)
        _powers(field[SCALE] + start + k, ranges[0], ranges[1], out.ctypes.data + 4 * k, end - k)
        k = end


@njit(fastmath=FAST)
def _powers(stored_at, low, step, out_at, count):  # type: ignore[no-untyped-def]
    """Write 2^(low + step · byte). The integer part sets the exponent; the rest (≤ ½) is a polynomial."""
    stored, out = carray(pointer(stored_at), count, np.uint8), carray(pointer(out_at), count, np.float32)
    bits = carray(pointer(out_at), count, np.int32)
    for k in range(count):
        bits[k] = i32((np.floor(low + step * f32(stored[k]) + f32(0.5)) + f32(127)) * f32(2.0**23))
    for k in range(count):
        power = low + step * f32(stored[k])
        r = (power - np.floor(power + f32(0.5))) * f32(0.6931471805599453)
        rest = f32(1 / 24) + r * (f32(1 / 120) + r * f32(1 / 720))
        out[k] *= f32(1) + r * (f32(1) + r * (f32(1 / 2) + r * (f32(1 / 6) + r * rest)))
