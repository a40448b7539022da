"""Multiplication of rounded inputs by a quantized matrix on a processor, in integers, for many tokens.

With codes w of row i and q of a token, in a *unit* u, the columns that share both scales:

    y_i = Σ_u scale_iu · input_scale_u · Σ_j (w_ij − zero_iu) (q_j − input_zero_u)                j in unit u

The product is taken apart, so that only bytes are multiplied (`dots.py`, `tiles.py`), and sums of them are
exact. A zero of the weight need not be whole, one of the inputs is:

    Σ (w − z) (q − v) = Σ w·q − c·Σ q − v·(Σ w − n·c) − (z − c) (Σ q − n·v)      n entries, c = 2^(bits − 1)

The first difference is of integers. Around the centre c, the others are small, and cancel no digits.

Rows are taken 32 at a time: their codes are unpacked once into the layout of a tile, and meet all tokens
while they lie in cache. Threads divide the rows. A kernel is a C function of a job (`arguments.py`): X has
the codes, int8 (TOKENS, COLUMNS), followed by rows up to a multiple of `tiles.TOKENS`, whose content is
free; INPUT_SCALE and INPUT_ZERO, float32 (TOKENS, COLUMNS / INPUT_GROUP), likewise. Without INPUT_ZERO, it
is 0. One of GROUP and INPUT_GROUP divides the other, and both are multiples of 8.
"""

from functools import cache

import numpy as np
from numba import carray, cfunc, njit, types

from sinq.kernels.cpu import dots, tiles
from sinq.kernels.cpu.arguments import (
    BITS,
    CODES,
    COLUMNS,
    FIELDS,
    GROUP,
    INPUT_GROUP,
    INPUT_SCALE,
    INPUT_ZERO,
    ROWS,
    TILES,
    TOKENS,
    X,
    Y,
    f32,
    i32,
    pointer,
)
from sinq.kernels.cpu.codes import Kernel
from sinq.kernels.cpu.openmp import thread_count, thread_number
from sinq.kernels.cpu.scales import decode_apart
from sinq.kernels.cpu.transposing import SIDE, transposer

EXACT = {"contract", "nsz"}
STRIP, TILE = dots.ROWS, tiles.TOKENS
WORD = 8  # codes that are packed together, in `bits` bytes
tile_dots, tile_product, read_word = dots.tile(dots.HAS_VNNI), tiles.product(), dots.word_reader()
transpose = transposer()


@cache
def multiply_rounded() -> Kernel:
    """Compile the C function y = x Ŵᵀ for rounded x: float32 Y (TOKENS, ROWS)."""
    return cfunc(types.void(types.intp), cache=True, fastmath=EXACT)(_multiply_rounded)


def _multiply_rounded(job):  # type: ignore[no-untyped-def]
    field = carray(pointer(job), FIELDS, np.int64)
    columns, unit = field[COLUMNS], min(field[GROUP], field[INPUT_GROUP])
    units = columns // unit
    padded = -(-field[TOKENS] // TILE) * TILE
    sums = _input_sums(field[X], padded, units, unit)
    codes, of_rows = np.zeros((columns // 4, STRIP), np.int32), np.zeros((units, 3, STRIP), np.float32)
    integers, y = np.empty((TILE, STRIP), np.int32), np.empty((TILE, STRIP), np.float32)
    strips, depth = -(-field[ROWS] // STRIP), _power_of_2(unit)
    before = tiles.configure(depth) if field[TILES] != 0 else np.empty(0, np.uint8)
    number, threads = np.int64(thread_number()), np.int64(thread_count())  # type: ignore[arg-type]
    for strip in range(strips * number // threads, strips * (number + 1) // threads):
        first = strip * STRIP
        count = min(STRIP, field[ROWS] - first)
        _unpack(field, first, count, codes, of_rows, unit)
        row_scales(field, first, count, of_rows, unit)
        for token in range(0, padded, TILE):
            y[:] = f32(0)
            for u in range(units):
                weights, x = codes.ctypes.data + u * unit * STRIP, field[X] + token * columns + u * unit
                _bytes(field, weights, x, unit, depth, integers)
                _add_up(field, token, u, unit, integers, sums, of_rows, y)
            _write(field, token, first, count, y)
    if field[TILES] != 0:
        tiles.restore(before)


@njit
def _power_of_2(unit):  # type: ignore[no-untyped-def]
    """Columns of a register: the largest power of 2 up to 64 that divides a unit."""
    depth = 64
    while unit % depth:
        depth //= 2
    return depth


@njit(forceinline=True)
def _bytes(field, codes_at, x_at, unit, depth, integers):  # type: ignore[no-untyped-def]
    """Write the sums of products of a unit, int32 (TILE, STRIP)."""
    stride, out = field[COLUMNS], integers.ctypes.data
    if field[TILES] != 0:
        tile_product(codes_at, x_at, stride, depth, unit // depth, out)
        return
    for token in range(0, TILE, dots.TOKENS):
        tile_dots(codes_at, x_at + token * stride, stride, unit // 4, out + 4 * STRIP * token)


@njit(forceinline=True)
def _input_sums(x_at, tokens, units, unit):  # type: ignore[no-untyped-def]
    """Σ of the codes of each unit of each token, int32."""
    sums = np.empty((tokens, units), np.int32)
    for token in range(tokens):
        for u in range(units):
            codes, total = carray(pointer(x_at + (token * units + u) * unit), unit, np.int8), i32(0)
            for j in range(unit):
                total += i32(codes[j])
            sums[token, u] = total
    return sums


@njit
def _unpack(field, first, count, codes, of_rows, unit):  # type: ignore[no-untyped-def]
    """Write the codes of rows as bytes, four columns of a row in one int32, and their sums in each unit.

    A word of eight codes is opened in three steps, as in `formats/packing.py`.
    """
    bits, words, asymmetric = field[BITS], field[COLUMNS] // WORD, field[INPUT_ZERO] != 0
    halves, quarters, eighths = _mask(bits, 32), _mask(bits, 16), _mask(bits, 8)
    move = np.uint64(8 - bits)
    of_rows[:, 2] = f32(0)
    whole = field[ROWS] * words - 8 // bits  # words that are followed by eight bytes
    for row in range(count):
        start = (first + row) * words
        out = carray(pointer(codes.ctypes.data + 4 * row), 2 * words * STRIP, np.int32)
        for word in range(words):
            address = field[CODES] + (start + word) * bits
            value = read_word(address) if start + word < whole else _last_word(address, bits)
            value = (value & halves) | ((value << (move * np.uint64(4))) & (halves << np.uint64(32)))
            value = (value & quarters) | ((value << (move * np.uint64(2))) & (quarters << np.uint64(16)))
            value = (value & eighths) | ((value << move) & (eighths << np.uint64(8)))
            out[2 * word * STRIP] = i32(value & np.uint64(0xFFFFFFFF))
            out[(2 * word + 1) * STRIP] = i32(value >> np.uint64(32))
            if asymmetric:
                of_rows[word * WORD // unit, 2, row] += f32(_sum_of_bytes(value))


@njit(forceinline=True)
def _mask(bits, width):  # type: ignore[no-untyped-def]
    """Mask of the codes that fill the lower half of every lane of 2 · width bits."""
    used, mask = bits * width // 8, np.uint64(0)
    for lane in range(0, 64, 2 * width):
        mask |= np.uint64((1 << used) - 1) << np.uint64(lane)
    return mask


@njit
def _last_word(address, bits):  # type: ignore[no-untyped-def]
    """Word of `bits` bytes at the end of the matrix, read byte by byte."""
    stored, value = carray(pointer(address), bits, np.uint8), np.uint64(0)
    for k in range(bits):
        value |= np.uint64(stored[k]) << np.uint64(8 * k)
    return value


@njit(forceinline=True)
def _sum_of_bytes(word):  # type: ignore[no-untyped-def]
    pairs = (word & np.uint64(0x00FF00FF00FF00FF)) + ((word >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF))
    return (pairs * np.uint64(0x0001000100010001)) >> np.uint64(48)


@njit(fastmath=EXACT)
def row_scales(field, first, count, of_rows, unit):  # type: ignore[no-untyped-def]
    """Write the scales of rows, and their zeros from the centre, for each unit (units, 3, STRIP)."""
    groups, centre = field[COLUMNS] // field[GROUP], f32(1 << (field[BITS] - 1))
    stored = np.empty((2, count * groups), np.float32)
    decode_apart(field, first, count * groups, stored[0], stored[1])
    for part in range(2):
        source, target = stored[part].ctypes.data, of_rows.ctypes.data + 4 * STRIP * part
        _turn(source, count, groups, target, field[GROUP] // unit)
    for u in range(len(of_rows)):
        zeros = carray(pointer(of_rows.ctypes.data + 4 * STRIP * (3 * u + 1)), STRIP, np.float32)
        for row in range(count):
            zeros[row] -= centre


@njit
def _turn(source, count, groups, target, repeats):  # type: ignore[no-untyped-def]
    """Write numbers (count, groups) as rows of STRIP, three rows apart, each group's `repeats` times."""
    apart, whole_rows, whole_groups = 3 * STRIP, count // SIDE * SIDE, groups // SIDE * SIDE
    for row in range(0, whole_rows, SIDE):
        for g in range(0, whole_groups, SIDE):
            at = target + 4 * (g * repeats * apart + row)
            transpose(source + 4 * (row * groups + g), groups, at, repeats * apart)
    for g in range(groups):
        at = target + 4 * g * repeats * apart
        out = carray(pointer(at), STRIP, np.float32)
        for row in range(whole_rows if g < whole_groups else 0, count):
            out[row] = carray(pointer(source + 4 * (row * groups + g)), 1, np.float32)[0]
        for copy in range(1, repeats):
            same = carray(pointer(at + 4 * copy * apart), STRIP, np.float32)
            for row in range(count):
                same[row] = out[row]


@njit(fastmath=EXACT, forceinline=True)
def _add_up(field, token, u, unit, integers, sums, of_rows, y):  # type: ignore[no-untyped-def]
    """Add a unit's sums to y (TILE, STRIP) for the tokens of a tile."""
    for t in range(TILE):
        whole_at, y_at = integers.ctypes.data + 4 * STRIP * t, y.ctypes.data + 4 * STRIP * t
        add_token(field, token + t, u, unit, whole_at, sums[token + t, u], of_rows.ctypes.data, y_at)


@njit(fastmath=EXACT)
def add_token(field, token, u, unit, whole_at, total, of_rows_at, y_at):  # type: ignore[no-untyped-def]
    """Add a unit's sums of products to a token's results (STRIP,): the module's formula.

    `of_rows_at` has scale, zero and sum of codes of each unit of the rows, float32 (units, 3, STRIP), and
    `total` is the sum of the token's codes. Loops are over arrays made from addresses, since an index that
    may be negative is slow.
    """
    rows_at = of_rows_at + 12 * STRIP * u
    per = field[COLUMNS] // field[INPUT_GROUP]
    centre, part = i32(1 << (field[BITS] - 1)), u * unit // field[INPUT_GROUP]
    scale, zero = (
        carray(pointer(rows_at), STRIP, np.float32),
        carray(pointer(rows_at + 4 * STRIP), STRIP, np.float32),
    )
    code_sums, middle = carray(pointer(rows_at + 8 * STRIP), STRIP, np.float32), f32(unit) * f32(centre)
    whole_sums, out = carray(pointer(whole_at), STRIP, np.int32), carray(pointer(y_at), STRIP, np.float32)
    at, moved = 4 * (token * per + part), centre * total
    step = carray(pointer(field[INPUT_SCALE] + at), 1, np.float32)[0]
    if field[INPUT_ZERO] == 0:
        whole = f32(total)
        for row in range(STRIP):
            exact = f32(whole_sums[row] - moved) - zero[row] * whole
            out[row] += exact * step * scale[row]
    else:
        offset = carray(pointer(field[INPUT_ZERO] + at), 1, np.float32)[0]
        whole = f32(total) - f32(unit) * offset
        for row in range(STRIP):
            exact = f32(whole_sums[row] - moved) - offset * (code_sums[row] - middle)
            out[row] += (exact - zero[row] * whole) * step * scale[row]


@njit
def _write(field, token, first, count, y):  # type: ignore[no-untyped-def]
    out = carray(pointer(field[Y]), (field[TOKENS], field[ROWS]), np.float32)
    for t in range(min(TILE, field[TOKENS] - token)):
        for row in range(count):
            out[token + t, first + row] = y[t, row]
