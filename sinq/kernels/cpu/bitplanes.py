"""Product of rounded inputs and a quantized matrix on a processor, bit plane by bit plane.

As in `integers.py`, the sums of each unit, the columns that share both scales, are exact integers; here they
are counted (`planes.py`), at p · q binary products of weights of p and inputs of q bits.

Weights are taken apart once and kept beside the stored codes while these live and nothing writes to them: p
bits for each weight more in memory, and 32 for each unit of a row. Inputs are taken apart in each call.

Sizes of units are free: the last word of a unit is filled up with zeros.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray, cfunc, njit, types
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sinq.formats.activations import QuantizedActivations
from sinq.formats.packing import unpack
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.cpu import planes
from sinq.kernels.cpu.arguments import (
    BITS,
    COLUMNS,
    FIELDS,
    GROUP,
    INPUT_GROUP,
    INPUT_ZERO,
    ROWS,
    TOKENS,
    X,
    Y,
    f32,
    i32,
    pointer,
)
from sinq.kernels.cpu.codes import Kernel
from sinq.kernels.cpu.dots import ROWS as STRIP
from sinq.kernels.cpu.integer import addresses, result_like, stored_tensors
from sinq.kernels.cpu.integers import EXACT, add_token, row_scales
from sinq.kernels.cpu.linear import run
from sinq.kernels.cpu.openmp import parallel, thread_count, thread_number

PLANES, SUMS, INPUT_BITS = range(FIELDS, FIELDS + 3)
"""Fields of a job behind those of `arguments.py`; CODES is not read."""
WORD = planes.COLUMNS
pack = planes.packer()
count_2, count_3, count_4, count_5, count_6, count_7, count_8 = map(planes.counter, range(2, 9))


class Prepared(NamedTuple):
    """Bit planes of a matrix, in strips of `STRIP` rows, the last one filled up with zeros."""

    planes: Tensor
    """int32 (strips, units, bits, words, STRIP)."""
    sums: Tensor
    """Σ of the codes of each unit, float32 (strips, units, STRIP): whole numbers below 2²⁴."""


_prepared: Any = WeakTensorKeyDictionary()
"""Stored codes → state of their memory, and bit planes by size of a unit."""


def refusal(value: QuantizedTensor, group_size: int) -> str | None:
    """Return the reason why `product` cannot take a value with inputs in groups, or None where it can."""
    if value.grid.auxiliary_bits == 8 and value.is_trained:
        return "bit planes: scales of 8 bits are read with ranges in float16; these are being trained"
    return None if parallel() is not None else "bit planes: torch has no OpenMP here"


def product(
    value: QuantizedTensor, x: QuantizedActivations, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return x Ŵᵀ + b (..., out_features) of a dtype; sums and bias are added in float32."""
    grid = value.grid
    sizes = (x.bits, value.shape[0], grid.bits, grid.group_size)
    arguments: tuple[Any, ...] = (x.codes, x.scale, x.zero, *stored_tensors(value), *sizes)
    result: Tensor = _operator(*arguments) if torch.compiler.is_compiling() else _linear(*arguments)
    return (result if bias is None else result + bias.float()).to(dtype)


def _linear(
    inputs: Tensor,
    input_scale: Tensor,
    input_zero: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_range: Tensor | None,
    scale_exponent: Tensor | None,
    input_bits: int,
    rows: int,
    bits: int,
    group_size: int,
) -> Tensor:
    columns, groups = inputs.shape[-1], input_scale.shape[-1]
    tokens, unit = inputs.numel() // columns, min(group_size, columns // groups)
    outputs = torch.empty(*inputs.shape[:-1], rows)
    if not tokens:
        return outputs
    kept = prepared(codes, bits, (rows, columns), unit)
    x, shared = inputs.contiguous(), [input_scale.contiguous()]
    shared.append(None if input_zero is None else input_zero.contiguous())  # type: ignore[arg-type]
    numbers = [bits, rows, columns, group_size, rows, tokens, 8 * scale.element_size(), 0, rows]
    stored = addresses(codes, scale, zero, None, scale_range, scale_exponent, x, outputs)
    fields = [*numbers, *stored, columns // groups, *addresses(*shared), 0]
    work = tokens * rows * columns * bits * input_bits // WORD
    run(_multiply(), [*fields, *addresses(*kept), input_bits], work)
    return outputs


_operator = torch.library.custom_op("sinq::cpu_bitplane_linear", _linear, mutates_args=())
"""`_linear` as one node of a compiled graph."""
_operator.register_fake(result_like)


def prepared(codes: Tensor, bits: int, shape: tuple[int, int], unit: int) -> Prepared:
    """Return the bit planes of packed codes of a shape (out, in), made at the first call.

    They are made again after a write to the codes.
    """
    if codes.is_inference():  # torch does not count writes to them
        return prepare(unpack(codes, bits, shape), bits, unit)
    state = codes.data_ptr(), codes._version
    known, by_unit = _prepared.get(codes, (None, {}))
    if known != state:
        by_unit = {}
        _prepared[codes] = state, by_unit
    if unit not in by_unit:
        by_unit[unit] = prepare(unpack(codes, bits, shape), bits, unit)
    found: Prepared = by_unit[unit]
    return found


def prepare(codes: Tensor, bits: int, unit: int) -> Prepared:
    """Take codes apart, uint8 (out, in)."""
    (rows, columns), words = codes.shape, -(-unit // WORD)
    strips, units, codes = -(-rows // STRIP), columns // unit, codes.contiguous()
    made = Prepared(
        torch.zeros(strips, units, bits, words, STRIP, dtype=torch.int32), torch.zeros(strips, units, STRIP)
    )
    run(_prepare(), [rows, columns, unit, bits, *addresses(codes, *made)], rows * columns)
    return made


@cache
def _prepare() -> Kernel:
    return cfunc(types.void(types.intp), cache=True)(_prepare_planes)


def _prepare_planes(job):  # type: ignore[no-untyped-def]
    rows, columns, unit, bits, codes, planes_at, sums_at = carray(pointer(job), 7, np.int64)
    units, words, last = columns // unit, -(-unit // WORD), np.zeros(WORD, np.uint8)
    number, threads = np.int64(thread_number()), np.int64(thread_count())  # type: ignore[arg-type]
    for row in range(rows * number // threads, rows * (number + 1) // threads):
        strip, lane = row // STRIP, row % STRIP
        for u in range(units):
            first = (strip * units + u) * bits * words * STRIP + lane
            start = codes + row * columns + u * unit
            _pack_unit(start, unit, bits, planes_at + 4 * first, words * STRIP, STRIP, last)
            at = sums_at + 4 * ((strip * units + u) * STRIP + lane)
            carray(pointer(at), 1, np.float32)[0] = f32(_sum_of_bytes(start, unit))


@njit
def _sum_of_bytes(address, count):  # type: ignore[no-untyped-def]
    entries, total = carray(pointer(address), count, np.uint8), i32(0)
    for j in range(count):
        total += i32(entries[j])
    return total


@njit
def _pack_unit(codes, unit, bits, out, plane_stride, word_stride, last):  # type: ignore[no-untyped-def]
    """Write the words of a unit's codes; strides of `out`, an address, are in words."""
    for word in range(unit // WORD):
        pack(codes + word * WORD, bits, out + 4 * word * word_stride, plane_stride)
    rest = unit % WORD
    if rest:
        whole, left = unit // WORD, carray(pointer(codes + unit - rest), rest, np.uint8)
        for j in range(WORD):
            last[j] = left[j] if j < rest else np.uint8(0)
        pack(last.ctypes.data, bits, out + 4 * whole * word_stride, plane_stride)
    return last[0]  # read once more, so that it lives until it is packed


@cache
def _multiply() -> Kernel:
    return cfunc(types.void(types.intp), cache=True, fastmath=EXACT)(_multiply_planes)


def _multiply_planes(job):  # type: ignore[no-untyped-def]
    field = carray(pointer(job), FIELDS + 3, np.int64)
    unit, tokens, bits, planes_of_x = (
        min(field[GROUP], field[INPUT_GROUP]),
        field[TOKENS],
        field[BITS],
        field[INPUT_BITS],
    )
    units, words = field[COLUMNS] // unit, -(-unit // WORD)
    x, totals = _taken_apart(field, unit, units, words, planes_of_x)
    size, of_rows = units * bits * words * STRIP, np.zeros((units, 3, STRIP), np.float32)
    integers, y = np.empty(STRIP, np.int32), np.empty(STRIP, np.float32)
    strips = -(-field[ROWS] // STRIP)
    number, threads = np.int64(thread_number()), np.int64(thread_count())  # type: ignore[arg-type]
    for strip in range(strips * number // threads, strips * (number + 1) // threads):
        first = strip * STRIP
        count = min(STRIP, field[ROWS] - first)
        row_scales(field, first, count, of_rows, unit)
        if field[INPUT_ZERO] != 0:
            of_rows[:, 2] = carray(pointer(field[SUMS] + 4 * first * units), (units, STRIP), np.float32)
        weights = field[PLANES] + 4 * strip * size
        for token in range(tokens):
            y[:] = f32(0)
            for u in range(units):
                start = x.ctypes.data + 4 * (token * units + u) * planes_of_x * words
                at = weights + 4 * u * bits * words * STRIP
                _counted(at, start, bits, words, planes_of_x, integers.ctypes.data)
                add_token(
                    field,
                    token,
                    u,
                    unit,
                    integers.ctypes.data,
                    totals[token, u],
                    of_rows.ctypes.data,
                    y.ctypes.data,
                )
            out = carray(pointer(field[Y] + 4 * (token * field[ROWS] + first)), count, np.float32)
            for row in range(count):
                out[row] = y[row]


@njit
def _taken_apart(field, unit, units, words, bits):  # type: ignore[no-untyped-def]
    """Words of all tokens' codes, int32 (tokens, units, bits, words), and Σ of the codes of each unit."""
    tokens, last = field[TOKENS], np.zeros(WORD, np.uint8)
    x, sums = np.empty((tokens, units, bits, words), np.int32), np.empty((tokens, units), np.int32)
    for token in range(tokens):
        for u in range(units):
            start = field[X] + (token * units + u) * unit
            _pack_unit(start, unit, bits, x[token, u].ctypes.data, words, 1, last)
            codes, total = carray(pointer(start), unit, np.int8), i32(0)
            for j in range(unit):
                total += i32(codes[j])
            sums[token, u] = total
    return x, sums


@njit(forceinline=True)
def _counted(weights, x, planes_of_w, words, bits, out):  # type: ignore[no-untyped-def]
    """Write the sums of a unit by the function for the inputs' bits."""
    if bits == 8:
        count_8(weights, x, planes_of_w, words, out)
    elif bits == 4:
        count_4(weights, x, planes_of_w, words, out)
    elif bits == 2:
        count_2(weights, x, planes_of_w, words, out)
    elif bits == 3:
        count_3(weights, x, planes_of_w, words, out)
    elif bits == 5:
        count_5(weights, x, planes_of_w, words, out)
    elif bits == 6:
        count_6(weights, x, planes_of_w, words, out)
    else:
        count_7(weights, x, planes_of_w, words, out)
