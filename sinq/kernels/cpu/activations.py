"""Rounding of inputs to codes on a processor: each group of entries that share a scale in one go.

All operations are those of `formats/activations.py` on float32, in the same order, so that codes, scales and
zeros are the same to the last bit. Threads divide the groups.
"""

from functools import cache

import numpy as np
import torch
from numba import carray, cfunc, njit, types
from torch import Tensor

from sinq.formats.activations import ActivationFormat, QuantizedActivations
from sinq.kernels.cpu.arguments import f32, i32, pointer
from sinq.kernels.cpu.codes import Kernel
from sinq.kernels.cpu.linear import run
from sinq.kernels.cpu.openmp import parallel, thread_count, thread_number

PARTS, SIZE, HALF, SYMMETRIC, STATIC, NUMBERS, X, CODES, SCALE, ZERO = range(10)
"""Fields of a job: numbers up to STATIC, then addresses.

NUMBERS has four: the factor from a range to its scale, the clip ratio, and scale and zero where STATIC.
"""
PASSES = 4
"""Multiplications that rounding a number costs, approximately."""


def quantize(
    x: Tensor, format: ActivationFormat, scale: Tensor | None = None, zero: Tensor | None = None
) -> QuantizedActivations:
    """Return x with the nearest codes: see `sinq.kernels.activations.quantize`."""
    if parallel() is None or not x.numel():
        if scale is None or zero is None:
            scale, zero = format.scales(*format.extremes(x))
        return format.quantize(x, scale, zero)
    inputs, columns, half = x.detach().float().contiguous(), x.shape[-1], 2 ** (format.bits - 1)
    groups = columns // format.group_size if format.group_size else 1
    steps = half - 1 if format.symmetric else 2 * half - 1
    given = [0.0 if each is None else each.item() for each in (scale, zero)]
    numbers = torch.tensor([format.clip_ratio / steps, format.clip_ratio, *given])
    codes = torch.empty(x.shape, dtype=torch.int8)
    scales, zeros = (torch.empty(*x.shape[:-1], groups) for _ in range(2))
    counts = [scales.numel(), columns // groups, half, format.symmetric, scale is not None]
    addresses = [tensor.data_ptr() for tensor in (numbers, inputs, codes, scales, zeros)]
    run(round_inputs(), [*map(int, counts), *addresses], PASSES * inputs.numel())
    return QuantizedActivations(codes, scales, None if format.symmetric else zeros, format.bits)


@cache
def round_inputs() -> Kernel:
    """Compile the C function that rounds float32 X to int8 CODES, and writes SCALE and ZERO."""
    return cfunc(types.void(types.intp), cache=True, error_model="numpy")(_round_inputs)


def _round_inputs(job):  # type: ignore[no-untyped-def]
    field = carray(pointer(job), 10, np.int64)
    parts, size, half = field[PARTS], field[SIZE], f32(field[HALF])
    numbers = carray(pointer(field[NUMBERS]), 4, np.float32)
    scales, zeros = (
        carray(pointer(field[SCALE]), parts, np.float32),
        carray(pointer(field[ZERO]), parts, np.float32),
    )
    number, threads = np.int64(thread_number()), np.int64(thread_count())  # type: ignore[arg-type]
    for part in range(parts * number // threads, parts * (number + 1) // threads):
        x, codes = field[X] + 4 * part * size, field[CODES] + part * size
        scale, zero = numbers[2], numbers[3]
        if field[STATIC] == 0:
            low, high = _extremes(x, size)
            scale, zero = _scale(low, high, numbers[0], numbers[1], half, field[SYMMETRIC] != 0)
        _codes(x, codes, size, scale, zero, half)
        if _has_nan(x, size):
            scale, zero = f32(np.nan), f32(np.nan)
        scales[part], zeros[part] = scale, zero


@njit(fastmath={"nnan", "nsz"}, forceinline=True)
def _extremes(x_at, size):  # type: ignore[no-untyped-def]
    """Smallest and largest entry, 0 among them; a NaN may be overlooked."""
    x, low, high = carray(pointer(x_at), size, np.float32), f32(0), f32(0)
    for j in range(size):
        low, high = min(low, x[j]), max(high, x[j])
    return low, high


@njit(error_model="numpy", forceinline=True)
def _scale(low, high, factor, clip, half, symmetric):  # type: ignore[no-untyped-def]
    """Scale and zero of a range: `ActivationFormat.scales`."""
    scale = (max(-low, high) if symmetric else high - low) * factor
    if scale == f32(0):
        scale = f32(1)
    return scale, f32(0) if symmetric else np.rint(-low * clip / scale) - half


@njit(error_model="numpy", forceinline=True)
def _codes(x_at, codes_at, size, scale, zero, half):  # type: ignore[no-untyped-def]
    x, codes = carray(pointer(x_at), size, np.float32), carray(pointer(codes_at), size, np.int8)
    for j in range(size):
        code = np.rint(x[j] / scale + zero)
        code = code if code < half - f32(1) else half - f32(1)
        codes[j] = np.int8(i32(code if code > -half else -half))


@njit(forceinline=True)
def _has_nan(x_at, size):  # type: ignore[no-untyped-def]
    x, count = carray(pointer(x_at), size, np.float32), i32(0)
    for j in range(size):
        count += i32(x[j] != x[j])
    return count > 0
