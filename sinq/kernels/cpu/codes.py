"""Multiplication by a quantized matrix on a processor, from the stored codes.

Per row i, with x' = x · col_scale:

    y_i = Σ_g scale_ig · (Σ_j code_ij · x'_j − zero_ig · Σ_j x'_j)        j in group g

x' is rounded to 16 bits, in units of the largest entry of each group divided by 32767: an error of at most
2⁻¹⁶ of that entry, and sums of integers. Where x is rounded already (INPUT_SCALE), it has whole numbers of 16
bits, and the scale is their unit: then nothing is lost.

Eight codes are `bits` bytes. Here they are *lanes*: 32-bit integers with eight codes of 2, 3 or 4 bits, or
four of 5, 6 or 8. Code c of eight adjacent lanes is one vector (`llvm_vectors.py`), so x' is laid out to
match it, padded with zeros.

A kernel is a C function of one argument, the address of a *job* (`arguments.py`). Each of its threads
computes its share of the rows. Each thread prepares x' and its sums for itself, since they depend on x alone:
that is cheaper than waiting for another thread.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types

from sinq.kernels.cpu import llvm_vectors
from sinq.kernels.cpu.arguments import (
    AUXILIARY,
    BITS,
    CODES,
    COL_SCALE,
    COLUMNS,
    FAST,
    FIELDS,
    FIRST,
    GROUP,
    INPUT_GROUP,
    INPUT_SCALE,
    LAST,
    ROWS,
    TILE,
    TOKENS,
    X,
    Y,
    f32,
    i16,
    pointer,
)
from sinq.kernels.cpu.llvm_vectors import WIDTH
from sinq.kernels.cpu.openmp import thread_count, thread_number
from sinq.kernels.cpu.scales import decode, floats, spread

LARGEST, TINIEST = 32767, 1e-30  # largest 16-bit integer; a group of x below TINIEST counts as zeros
SPARE = llvm_vectors.BYTES  # bytes that a row's last vector reads beyond its codes, at most
STRIP = 16  # rows whose scales are decoded together: one row of a small matrix is too short for vectors
Kernel = Any
"""Type of a compiled C function, with its `address`, and `ctypes` to call it."""

# By the number of scales of a block.
whole, halved, mixed = (llvm_vectors.product(parts) for parts in (1, 2, 8))
widened = llvm_vectors.widening()


@cache
def multiply() -> Kernel:
    """Compile the C function y = x Ŵᵀ: float32 x (TOKENS, COLUMNS) → y (TOKENS, ROWS)."""
    return cfunc(types.void(types.intp), cache=True, fastmath=FAST)(_multiply)


@cache
def widen() -> Kernel:
    """Compile the C function that writes rows FIRST … LAST of Ŵ / col_scale, times factors, to Y.

    Y is float32 (row, block, code, lane); `llvm_vectors.factor` gives the factor of each code.
    """
    return cfunc(types.void(types.intp), cache=True, fastmath=FAST)(_widen)


def _multiply(job):  # type: ignore[no-untyped-def]
    field = carray(pointer(job), FIELDS, np.int64)
    rows, columns, tile, tokens, bits = field[ROWS], field[COLUMNS], field[TILE], field[TOKENS], field[BITS]
    each, blocks = _layout(field)
    groups, row = columns // field[GROUP], blocks * WIDTH
    per = field[GROUP] // (each * WIDTH)  # blocks per group
    if per * each * WIDTH != field[GROUP]:
        per = 0  # a block has parts of several groups: two halves, or else scales are spread over lanes
    halves = 2 * field[GROUP] == each * WIDTH and groups % 2 == 0
    x, sums = np.zeros((tokens, row * each), np.int16), np.empty((tokens, groups), np.float32)
    units, factors = np.empty((tokens, groups), np.float32), np.empty(STRIP * groups, np.float32)
    scale, zero, shifts = (
        np.empty(STRIP * groups, np.float32),
        np.empty(STRIP * groups, np.float32),
        np.empty(STRIP, np.float32),
    )
    per_lane, copied = np.zeros(row, np.float32), np.zeros(row * each * bits // 8 + SPARE, np.uint8)
    x_at, factors_at, per_lane_at, copied_at = (
        x.ctypes.data,
        factors.ctypes.data,
        per_lane.ctypes.data,
        copied.ctypes.data,
    )
    scale_at, zero_at, units_at, sums_at = (
        scale.ctypes.data,
        zero.ctypes.data,
        units.ctypes.data,
        sums.ctypes.data,
    )
    shifts_at = shifts.ctypes.data
    inputs = carray(pointer(field[X]), (tokens, columns), np.float32)
    first, last = _share(0, rows)
    prepared = -1
    while first < last:
        if first // tile != prepared:
            prepared = first // tile
            for token in range(tokens):
                _prepare(field, token, inputs[token], prepared, x[token], units[token], sums[token])
        count = min(last, first + STRIP, (prepared + 1) * tile) - first
        decode(field, first, count * groups, scale, zero)
        for token in range(tokens):
            other = 4 * groups * token
            _combine(
                scale_at, zero_at, units_at + other, sums_at + other, factors_at, shifts_at, count, groups
            )
            entries, out = (
                x_at + 2 * token * row * each,
                carray(pointer(field[Y] + 4 * (token * rows + first)), count, np.float32),
            )
            for i in range(count):
                start, row_at = _codes(field, first + i, copied_at, len(copied)), factors_at + 4 * groups * i
                if per:
                    total = whole(bits, start, entries, row_at, groups, per)
                elif halves:
                    total = halved(bits, start, entries, row_at, blocks, 1)
                else:
                    spread(factors[groups * i : groups * (i + 1)], per_lane, 1, groups, field[GROUP] // each)
                    total = mixed(bits, start, entries, per_lane_at, blocks, 1)
                out[i] = total - shifts[i]
        first += count


@njit(fastmath=FAST)
def _combine(scale_at, zero_at, units_at, sums_at, factors_at, shifts_at, rows, groups):  # type: ignore[no-untyped-def]
    """Write scales of rows times units of x to `factors_at`, and Σ scale · zero · Σ x to `shifts_at`.

    Arguments are addresses, since an index that may be negative is slow.
    """
    units, sums = carray(pointer(units_at), groups, np.float32), carray(pointer(sums_at), groups, np.float32)
    shifts = carray(pointer(shifts_at), rows, np.float32)
    for i in range(rows):
        offset, shift = 4 * i * groups, f32(0)
        scale, zero = (
            carray(pointer(scale_at + offset), groups, np.float32),
            carray(pointer(zero_at + offset), groups, np.float32),
        )
        factors = carray(pointer(factors_at + offset), groups, np.float32)
        for g in range(groups):
            factors[g] = scale[g] * units[g]
        for g in range(groups):
            shift += zero[g] * sums[g]
        shifts[i] = shift


def _widen(job):  # type: ignore[no-untyped-def]
    field = carray(pointer(job), FIELDS, np.int64)
    each, blocks = _layout(field)
    row, groups = blocks * WIDTH, field[COLUMNS] // field[GROUP]
    scale, zero = np.empty(STRIP * groups, np.float32), np.empty(STRIP * groups, np.float32)
    scales, shifts = np.zeros(STRIP * row, np.float32), np.zeros(STRIP * row, np.float32)
    copied = np.zeros(row * each * field[BITS] // 8 + SPARE, np.uint8)
    copied_at = copied.ctypes.data
    scales_at, shifts_at = scales.ctypes.data, shifts.ctypes.data
    first, last = _share(field[FIRST], field[LAST])
    for start in range(first, last, STRIP):
        count = min(last, start + STRIP) - start
        decode(field, start, count * groups, scale, zero)
        spread(scale, scales, count, groups, field[GROUP] // each)
        spread(zero, shifts, count, groups, field[GROUP] // each)
        for i in range(count):
            out = field[Y] + (start + i - field[FIRST]) * row * each * 4
            codes = _codes(field, start + i, copied_at, len(copied))
            widened(field[BITS], codes, scales_at + 4 * row * i, shifts_at + 4 * row * i, out, blocks)


@njit
def _layout(field):  # type: ignore[no-untyped-def]
    """Number of codes in a lane, and of blocks in a row."""
    each = 8 if field[BITS] <= 4 else 4
    return each, (field[COLUMNS] + each * WIDTH - 1) // (each * WIDTH)


@njit
def _share(first, last):  # type: ignore[no-untyped-def]
    """First and last (exclusive) of the rows of this thread."""
    count, number, threads = last - first, np.int64(thread_number()), np.int64(thread_count())  # type: ignore[arg-type]
    return first + count * number // threads, first + count * (number + 1) // threads


@njit(fastmath=FAST)
def _prepare(field, token, inputs, tile, x, units, sums):  # type: ignore[no-untyped-def]
    """Write x · col_scale of a tile to `x`, and the units and sums of its groups.

    `x` has 16 bits and the layout of the codes; its padding stays 0.
    """
    group, columns = field[GROUP], len(inputs)
    each, _ = _layout(field)
    half = each // 2
    scaled = np.empty(columns, np.float32)
    if field[COL_SCALE] != 0:
        floats(field[COL_SCALE], tile * columns, columns, 32 if field[AUXILIARY] == 32 else 16, scaled)
        for j in range(columns):
            scaled[j] *= inputs[j]
    else:
        for j in range(columns):
            scaled[j] = inputs[j]
    for g in range(len(sums)):
        values, exact, total = (
            carray(pointer(scaled.ctypes.data + 4 * g * group), group, np.float32),
            f32(0),
            f32(0),
        )
        for j in range(group):
            exact += values[j]
        if field[INPUT_SCALE] != 0:
            inverse, unit = f32(1), _given(field, token, g * group)
        else:
            largest = _largest(values)
            inverse = f32(LARGEST) / largest if largest > f32(TINIEST) else f32(0)
            unit = largest / f32(LARGEST)
        for j in range(group):
            values[j] = np.rint(values[j] * inverse)
            total += values[j]
        units[g] = unit + (exact - exact)  # NaN where x has one or overflows
        sums[g] = total * units[g]
    for lane in range(columns // each):
        slot = lane // WIDTH * half * 2 * WIDTH + lane % WIDTH * 2
        for code in range(half):
            x[slot + code * 2 * WIDTH] = i16(scaled[lane * each + code])
            x[slot + code * 2 * WIDTH + 1] = i16(scaled[lane * each + half + code])


@njit
def _given(field, token, column):  # type: ignore[no-untyped-def]
    """Scale of a token's rounded entry."""
    per = field[COLUMNS] // field[INPUT_GROUP]
    scales = carray(pointer(field[INPUT_SCALE]), field[TOKENS] * per, np.float32)
    return scales[token * per + column // field[INPUT_GROUP]]


@njit(fastmath=FAST | {"nnan"}, forceinline=True)
def _largest(values):  # type: ignore[no-untyped-def]
    """Largest magnitude. A NaN may be overlooked; the caller finds it by the sum."""
    largest = f32(0)
    for j in range(len(values)):
        largest = max(largest, abs(values[j]))
    return largest


@njit(forceinline=True)
def _codes(field, i, copied_at, size):  # type: ignore[no-untyped-def]
    """Address of a row's codes: of the stored codes, or of a copy with SPARE bytes behind it.

    The stored codes are used where they fill whole blocks and more rows follow.
    """
    count = field[COLUMNS] // 8 * field[BITS]
    start = field[CODES] + i * count
    if count + SPARE == size and i + 1 < field[ROWS]:
        return start
    stored, copied = carray(pointer(start), count, np.uint8), carray(pointer(copied_at), count, np.uint8)
    for k in range(count):
        copied[k] = stored[k]
    return copied_at
