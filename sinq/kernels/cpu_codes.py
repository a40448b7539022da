"""Multiplying by a quantized matrix on a processor, from its codes as they are stored.

Per row i, with x' = x · col_scale:

    y_i = Σ_g scale_ig · (Σ_j code_ij · x'_j − zero_ig · Σ_j x'_j)        j in group g

x' is rounded to 16 bits, in units of its largest entry in each group: an error of 2⁻¹⁶ of that at most, and sums in whole numbers.

Eight codes are `bits` bytes. Here they are *lanes*: 32-bit integers with eight codes of 2, 3 or 4 bits, or four of 5, 6 or 8. Code c of
eight neighbouring lanes is one vector (`vectors.py`), so x' is laid out to match it, filled up with zeros.

A kernel is a C function of one argument, the address of a *job*: int64 numbers and addresses, in the order of the constants below.
Each of its threads does its share of the rows; what depends on x alone (x', its sums) each prepares for itself, which is cheaper than
waiting for another.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from sinq.auxiliary import BLOCK
from sinq.kernels import vectors
from sinq.kernels.openmp import thread_count, thread_number
from sinq.kernels.vectors import WIDTH

FAST = {"reassoc", "contract", "nsz"}
BITS, ROWS, COLUMNS, GROUP, TILE, TOKENS, AUXILIARY, FIRST, LAST, CODES, SCALE, ZERO, COL_SCALE, RANGE, EXPONENT, X, Y = range(17)
LARGEST, TINIEST = 32767, 1e-30  # of 16 bits; a group of x below this counts as zeros
SPARE = vectors.BYTES  # a row's last vector reads so many bytes beyond its codes at most
STRIP = 16  # rows whose scales are decoded together: one row of a small matrix is too short for vectors
FIELDS = 17
"""Of a job: numbers (rows FIRST to LAST are asked for; COL_SCALE is one row per TILE rows), then addresses, 0 for what is not there."""

Kernel = Any
"""A compiled C function: its `address`, and `ctypes` to call it."""

f32, i32, i16 = np.float32, np.int32, np.int16

whole_2, whole_3, whole_4, whole_5, whole_6, whole_8 = (vectors.product(bits, False) for bits in (2, 3, 4, 5, 6, 8))
mixed_2, mixed_3, mixed_4, mixed_5, mixed_6, mixed_8 = (vectors.product(bits, True) for bits in (2, 3, 4, 5, 6, 8))
widened_2, widened_3, widened_4, widened_5, widened_6, widened_8 = (vectors.widened(bits) for bits in (2, 3, 4, 5, 6, 8))


@cache
def multiply() -> Kernel:
    """The C function y = x Ŵᵀ: float32 x (TOKENS, COLUMNS) → y (TOKENS, ROWS)."""
    return cfunc(types.void(types.intp), cache=True, fastmath=FAST)(_multiply)


@cache
def widen() -> Kernel:
    """The C function that writes rows FIRST … LAST of Ŵ / col_scale, times factors, as float32 (row, block, code, lane)."""
    return cfunc(types.void(types.intp), cache=True, fastmath=FAST)(_widen)


def _multiply(job):  # type: ignore[no-untyped-def]
    field = carray(_pointer(job), FIELDS, np.int64)
    rows, columns, tile, tokens, bits = field[ROWS], field[COLUMNS], field[TILE], field[TOKENS], field[BITS]
    each, blocks = _layout(field)
    groups, row = columns // field[GROUP], blocks * WIDTH
    per = field[GROUP] // (each * WIDTH)  # blocks of a group
    if per * each * WIDTH != field[GROUP]:
        per = 0  # a block has parts of several groups: scales and units are spread over lanes
    x, sums = np.zeros((tokens, row * each), np.int16), np.empty((tokens, groups), np.float32)
    units, factors = np.empty((tokens, groups), np.float32), np.empty(groups, np.float32)
    scale, zero = np.empty(STRIP * groups, np.float32), np.empty(STRIP * groups, np.float32)
    spread, copied = np.zeros(row, np.float32), np.zeros(row * each * bits // 8 + SPARE, np.uint8)
    x_at, factors_at, spread_at = x.ctypes.data, factors.ctypes.data, spread.ctypes.data
    scale_at, zero_at, units_at, sums_at = scale.ctypes.data, zero.ctypes.data, units.ctypes.data, sums.ctypes.data
    inputs, outputs = carray(_pointer(field[X]), (tokens, columns), np.float32), carray(_pointer(field[Y]), (tokens, rows), np.float32)
    first, last = _share(0, rows)
    prepared = -1
    while first < last:
        if first // tile != prepared:
            prepared = first // tile
            for token in range(tokens):
                _prepare(field, inputs[token], prepared, x[token], units[token], sums[token])
        count = min(last, first + STRIP, (prepared + 1) * tile) - first
        _scales(field, first, count * groups, scale, zero)
        for i in range(count):
            start = _codes(field, first + i, copied)
            for token in range(tokens):
                entries = x_at + 2 * token * row * each
                own, other = 4 * groups * i, 4 * groups * token
                shift = _combine(scale_at + own, zero_at + own, units_at + other, sums_at + other, factors_at, groups)
                if per:
                    total = _whole(bits, start, entries, factors_at, groups, per)
                else:
                    _spread(factors, spread, 1, groups, field[GROUP] // each)
                    total = _mixed(bits, start, entries, spread_at, blocks)
                outputs[token, first + i] = total - shift
        first += count


@njit(fastmath=FAST)
def _combine(scale_at, zero_at, units_at, sums_at, factors_at, groups):  # type: ignore[no-untyped-def]
    """Scales of a row times those of x; returned is Σ scale · zero · Σ x. (Addresses, since an index that may be negative is slow.)"""
    scale, zero = carray(_pointer(scale_at), groups, np.float32), carray(_pointer(zero_at), groups, np.float32)
    units, sums = carray(_pointer(units_at), groups, np.float32), carray(_pointer(sums_at), groups, np.float32)
    factors, shift = carray(_pointer(factors_at), groups, np.float32), f32(0)
    for g in range(groups):
        factors[g] = scale[g] * units[g]
    for g in range(groups):
        shift += zero[g] * sums[g]
    return shift


def _widen(job):  # type: ignore[no-untyped-def]
    field = carray(_pointer(job), FIELDS, np.int64)
    each, blocks = _layout(field)
    row, groups = blocks * WIDTH, field[COLUMNS] // field[GROUP]
    scale, zero = np.empty(STRIP * groups, np.float32), np.empty(STRIP * groups, np.float32)
    scales, shifts = np.zeros(STRIP * row, np.float32), np.zeros(STRIP * row, np.float32)
    copied = np.zeros(row * each * field[BITS] // 8 + SPARE, np.uint8)
    scales_at, shifts_at = scales.ctypes.data, shifts.ctypes.data
    first, last = _share(field[FIRST], field[LAST])
    for start in range(first, last, STRIP):
        count = min(last, start + STRIP) - start
        _scales(field, start, count * groups, scale, zero)
        _spread(scale, scales, count, groups, field[GROUP] // each)
        _spread(zero, shifts, count, groups, field[GROUP] // each)
        for i in range(count):
            out = field[Y] + (start + i - field[FIRST]) * row * each * 4
            _widened(field[BITS], _codes(field, start + i, copied), scales_at + 4 * row * i, shifts_at + 4 * row * i, out, blocks)


@njit
def _whole(bits, lanes, x, scales, groups, per):  # type: ignore[no-untyped-def]
    if bits == 2:
        return whole_2(lanes, x, scales, groups, per)
    if bits == 3:
        return whole_3(lanes, x, scales, groups, per)
    if bits == 4:
        return whole_4(lanes, x, scales, groups, per)
    if bits == 5:
        return whole_5(lanes, x, scales, groups, per)
    if bits == 6:
        return whole_6(lanes, x, scales, groups, per)
    return whole_8(lanes, x, scales, groups, per)


@njit
def _mixed(bits, lanes, x, scales, blocks):  # type: ignore[no-untyped-def]
    if bits == 2:
        return mixed_2(lanes, x, scales, blocks, 1)
    if bits == 3:
        return mixed_3(lanes, x, scales, blocks, 1)
    if bits == 4:
        return mixed_4(lanes, x, scales, blocks, 1)
    if bits == 5:
        return mixed_5(lanes, x, scales, blocks, 1)
    if bits == 6:
        return mixed_6(lanes, x, scales, blocks, 1)
    return mixed_8(lanes, x, scales, blocks, 1)


@njit
def _widened(bits, lanes, scales, shifts, out, blocks):  # type: ignore[no-untyped-def]
    if bits == 2:
        return widened_2(lanes, scales, shifts, out, blocks)
    if bits == 3:
        return widened_3(lanes, scales, shifts, out, blocks)
    if bits == 4:
        return widened_4(lanes, scales, shifts, out, blocks)
    if bits == 5:
        return widened_5(lanes, scales, shifts, out, blocks)
    if bits == 6:
        return widened_6(lanes, scales, shifts, out, blocks)
    return widened_8(lanes, scales, shifts, out, blocks)


@njit
def _layout(field):  # type: ignore[no-untyped-def]
    """Codes in a lane, and blocks in a row."""
    each = 8 if field[BITS] <= 4 else 4
    return each, (field[COLUMNS] + each * WIDTH - 1) // (each * WIDTH)


@njit
def _share(first, last):  # type: ignore[no-untyped-def]
    """The rows of this thread."""
    count, number, threads = last - first, np.int64(thread_number()), np.int64(thread_count())  # type: ignore[arg-type]
    return first + count * number // threads, first + count * (number + 1) // threads


@njit(fastmath=FAST)
def _prepare(field, inputs, tile, x, units, sums):  # type: ignore[no-untyped-def]
    """x · col_scale of a tile in 16 bits and its layout, and units and sums of its groups. What x is filled up with stays 0."""
    group, columns = field[GROUP], len(inputs)
    each, _ = _layout(field)
    half = each // 2
    scaled = np.empty(columns, np.float32)
    if field[COL_SCALE] != 0:
        _floats(field[COL_SCALE], tile * columns, columns, 32 if field[AUXILIARY] == 32 else 16, scaled)
        for j in range(columns):
            scaled[j] *= inputs[j]
    else:
        for j in range(columns):
            scaled[j] = inputs[j]
    for g in range(len(sums)):
        largest, exact, total = f32(0), f32(0), f32(0)
        for j in range(g * group, (g + 1) * group):
            largest = max(largest, abs(scaled[j]))
            exact += scaled[j]
        inverse = f32(LARGEST) / largest if largest > f32(TINIEST) else f32(0)
        for j in range(g * group, (g + 1) * group):
            scaled[j] = np.rint(scaled[j] * inverse)
            total += scaled[j]
        units[g] = largest / f32(LARGEST) + (exact - exact)  # NaN, where x has one or overflows
        sums[g] = total * units[g]
    for lane in range(columns // each):
        place = lane // WIDTH * half * 2 * WIDTH + lane % WIDTH * 2
        for code in range(half):
            x[place + code * 2 * WIDTH] = i16(scaled[lane * each + code])
            x[place + code * 2 * WIDTH + 1] = i16(scaled[lane * each + half + code])


@njit
def _codes(field, i, copied):  # type: ignore[no-untyped-def]
    """The address of a row's codes: its own where they fill whole blocks and more rows follow, otherwise of a copy with room behind it."""
    count = field[COLUMNS] // 8 * field[BITS]
    start = field[CODES] + i * count
    if count + SPARE == len(copied) and i + 1 < field[ROWS]:
        return start
    stored = carray(_pointer(start), count, np.uint8)
    for k in range(count):
        copied[k] = stored[k]
    return copied.ctypes.data


@njit(fastmath=FAST)
def _scales(field, row, count, scale, zero):  # type: ignore[no-untyped-def]
    """The first `count` scales, and scale · zero, from a row on."""
    start, auxiliary = row * (field[COLUMNS] // field[GROUP]), field[AUXILIARY]
    if auxiliary == 8:
        _bytes_to_scales(field, start, count, scale)
    else:
        _floats(field[SCALE], start, count, auxiliary, scale)
    if field[EXPONENT] != 0:
        unit = f32(2.0 ** np.float64(carray(_pointer(field[EXPONENT]), 1, np.int8)[0]))
        for g in range(count):
            scale[g] *= unit
    centre = f32(1 << (field[BITS] - 1))
    if field[ZERO] == 0:
        for g in range(count):
            zero[g] = centre
    elif auxiliary == 8:
        stored = carray(_pointer(field[ZERO] + start), count, np.int8)
        for g in range(count):
            zero[g] = f32(stored[g]) + centre
    else:
        _floats(field[ZERO], start, count, auxiliary, zero)
    for g in range(count):
        zero[g] *= scale[g]


@njit
def _spread(values, out, rows, groups, each):  # type: ignore[no-untyped-def]
    """The value of each group for each of its lanes. Eight copies are one instruction if their number is known."""
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
def _floats(address, start, count, bits, out):  # type: ignore[no-untyped-def]
    """Stored floats of 16 or 32 bits → float32. A half's bits, moved, are a float32 that is 2^112 times too small."""
    if bits == 32:
        whole = carray(_pointer(address + 4 * start), count, np.float32)
        for k in range(count):
            out[k] = whole[k]
        return
    halves, moved = carray(_pointer(address + 2 * start), count, np.uint16), out.view(np.int32)
    for k in range(count):
        half = i32(halves[k])
        moved[k] = (half & i32(0x7FFF)) << i32(13) | (half & i32(0x8000)) << i32(16)
    for k in range(count):
        out[k] *= f32(2.0**112)


@njit(fastmath=FAST)
def _bytes_to_scales(field, start, count, out):  # type: ignore[no-untyped-def]
    """2^(low + step · byte), see `auxiliary.py`."""
    ranges, k = np.empty(2, np.float32), 0
    while k < count:
        block = (start + k) // BLOCK
        _floats(field[RANGE], 2 * block, 2, 16, ranges)
        end = min(count, (block + 1) * BLOCK - start)
        _powers(field[SCALE] + start + k, ranges[0], ranges[1], out.ctypes.data + 4 * k, end - k)
        k = end


@njit(fastmath=FAST)
def _powers(stored_at, low, step, out_at, count):  # type: ignore[no-untyped-def]
    """The whole part of a power goes into the exponent's bits, the rest (at most ½) is a polynomial."""
    stored, out = carray(_pointer(stored_at), count, np.uint8), carray(_pointer(out_at), count, np.float32)
    bits = carray(_pointer(out_at), count, np.int32)
    for k in range(count):
        bits[k] = i32((np.floor(low + step * f32(stored[k]) + f32(0.5)) + f32(127)) * f32(2.0**23))
    for k in range(count):
        power = low + step * f32(stored[k])
        r = (power - np.floor(power + f32(0.5))) * f32(0.6931471805599453)
        rest = f32(1 / 24) + r * (f32(1 / 120) + r * f32(1 / 720))
        out[k] *= f32(1) + r * (f32(1) + r * (f32(1 / 2) + r * (f32(1 / 6) + r * rest)))


@intrinsic
def _as_pointer(_context, _address):  # type: ignore[no-untyped-def]
    """An address as a pointer, for `carray`."""

    def cast(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), cast


_pointer: Any = _as_pointer
