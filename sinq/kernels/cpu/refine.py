"""HQQ's refinement on a processor: weights become grid positions once, and each step is one pass over them.

A group whose zero no longer moves is left out of the later steps; after a few of them that is nearly every
group. The power |e|^(p−1) is needed only in groups with an error that `shrink` does not take to 0. There
|e| = m·2^k with 1 ≤ m < 2, so |e|^(p−1) is an entry of a table for k times a polynomial in m, accurate to a
few units of float32's last digit, and eight are computed at a time.
"""

import numpy as np
import torch
from numba import njit, prange
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from sinq.algorithms.half_quadratic import HalfQuadratic, alternate
from sinq.formats.grid import Grid
from sinq.formats.rounding import nonzero
from sinq.kernels.cpu.arguments import FAST
from sinq.kernels.cpu.quantize import CODES, choose_range, extremes, pack_words, range_limits
from sinq.kernels.cpu.threads import array, torch_threads

SMALLEST, LARGEST = 1e-5, 1e5  # limits of magnitudes; see `half_quadratic.shrink`
EXPONENTS = 17  # exponents of 2 of these magnitudes: −17 … 17
DEGREE = 9
LANES = 32
EXACT = {"nsz"}
"""Flags that keep the order of sums; explicit, since functions without flags take those of their caller."""


def refine_scaled(
    weight: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    grid: Grid,
    options: HalfQuadratic,
    round_zero: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sinq.kernels.quantize.refine_scaled`."""
    rows, columns = weight.shape
    groups = columns // grid.group_size
    row = np.ones((1, groups), np.float32) if row_scale is None else array(row_scale)
    col = np.ones((1, columns), np.float32) if col_scale is None else array(col_scale)
    positions = np.empty((rows, columns), np.float32)
    inverse, start = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    packed = np.empty(-(-rows * columns // CODES) * grid.bits, np.uint8)
    fitted = power(options.norm - 1)

    def step(zero: Tensor, beta: float, moving: Tensor) -> tuple[Tensor, Tensor]:
        moved, size = np.empty_like(start), np.empty_like(start)
        state = (positions, inverse, array(zero), moving.numpy())
        shrinking = (np.float32(unshrunk(options.norm, beta)), np.float32(beta), *fitted)
        _step(*state, grid.bits, *shrinking, moved, size)
        return torch.from_numpy(moved), torch.from_numpy(size)

    matrix, limits = array(weight), range_limits(grid)
    with torch_threads():
        _positions(matrix, row, col, grid.bits, limits, round_zero, positions, inverse, start)
        used, zero = alternate(step, torch.from_numpy(start), grid.tile((rows, columns))[0], options)
        _codes(positions, array(used), grid.bits, packed)
    scale = np.where(inverse > 0, 1 / np.where(inverse > 0, inverse, 1), 0).astype(np.float32)
    return torch.from_numpy(packed), nonzero(torch.from_numpy(scale)), zero


def unshrunk(norm: float, beta: float) -> float:
    """Return a magnitude up to which `half_quadratic.shrink` returns 0, or −1 where there is none."""
    limit = beta ** (-1 / (2 - norm)) * (1 - 1e-5)
    return limit if limit > SMALLEST else -1.0


def power(exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the table and the polynomial of m^exponent · (2^k)^exponent, both float32.

    The table has (2^k)^exponent for k from −EXPONENTS to EXPONENTS. The polynomial has the coefficients of
    m^exponent in m − 1.5, for m from 1 to 2.
    """
    powers = 2.0 ** (np.arange(-EXPONENTS, EXPONENTS + 1) * exponent)
    fitted = Chebyshev.interpolate(lambda m: m**exponent, DEGREE, domain=[1, 2])
    polynomial = fitted.convert(domain=[1, 2], kind=Polynomial, window=[-0.5, 0.5])
    return powers.astype(np.float32), polynomial.coef.astype(np.float32)


@njit(parallel=True, fastmath=EXACT, error_model="numpy", cache=True)
def _positions(weight, row, col, bits, limits, round_zero, positions, inverse, zero):  # type: ignore[no-untyped-def]
    """Write W / (row ⊗ col) · inverse, `inverse` (0 for a group of zeros), and the initial zeros."""
    rows, columns = weight.shape
    top, size = np.float32(2**bits - 1), columns // inverse.shape[1]
    for i in prange(rows):
        divisor = col[i * len(col) // rows]
        for group in range(inverse.shape[1]):
            start, by = group * size, row[i % len(row), group]
            part = positions[i, start : start + size]
            for j in range(size):
                part[j] = weight[i, start + j] / divisor[start + j] / by
            low, high = extremes(part)
            scale, _ = choose_range(low, high, top, limits)
            factor = np.float32(0)
            if scale > 0:
                factor = (
                    np.float32(1) / (high - low) * top
                    if scale == (high - low) / top
                    else np.float32(1) / scale
                )
            for j in range(size):
                part[j] *= factor
            inverse[i, group] = factor
            zero[i, group] = np.rint(-low * factor) if round_zero else -low * factor


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _step(positions, inverse, zero, moving, bits, limit, beta, powers, polynomial, moved, size):  # type: ignore[no-untyped-def]
    """Write the next zeros and Σ|error| of the groups that move."""
    rows, groups = zero.shape
    top, width = np.float32(2**bits - 1), positions.shape[1] // groups
    for i in prange(rows):
        # codes − positions; their mean is the next zero where nothing is shrunk
        rest = np.empty(width, np.float32)
        for group in range(groups):
            if not moving[i, group]:
                continue
            part, offset, factor = (
                positions[i, group * width : (group + 1) * width],
                zero[i, group],
                inverse[i, group],
            )
            scale = np.float32(1) / factor if factor > 0 else np.float32(0)
            error, above, bound = np.float32(0), np.float32(0), limit * factor
            for j in range(width):
                rest[j] = min(max(np.rint(part[j] + offset), np.float32(0)), top) - part[j]
                magnitude = abs(offset - rest[j])
                error += magnitude
                above += max(magnitude - bound, np.float32(0))
            if above > 0:
                _add_shrunk(rest, offset, factor, scale, beta, powers, polynomial)
            moved[i, group] = _sum(rest) / np.float32(width)
            size[i, group] = error * scale


@njit(fastmath=EXACT, error_model="numpy", cache=True)
def _sum(values):  # type: ignore[no-untyped-def]
    """Sum in torch's order (with AVX2): the last digit decides ties; weights from a 4-bit grid have many."""
    lanes, whole = np.zeros(LANES, np.float32), len(values) // LANES * LANES
    for start in range(0, whole, LANES):
        for k in range(LANES):
            lanes[k] += values[start + k]
    total = np.float32(0)
    for k in range(LANES // 4):
        total += lanes[k] + lanes[k + LANES // 4] + lanes[k + LANES // 2] + lanes[k + 3 * LANES // 4]
    for j in range(whole, len(values)):
        total += values[j]
    return total


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _add_shrunk(rest, offset, factor, scale, beta, powers, polynomial):  # type: ignore[no-untyped-def]
    """Add shrink(error) · factor to `rest`, where error = (offset − rest) · scale."""
    magnitude, mantissa = np.empty(len(rest), np.float32), np.empty(len(rest), np.float32)
    bits, mantissa_bits = magnitude.view(np.int32), mantissa.view(np.int32)
    for j in range(len(rest)):
        magnitude[j] = min(max(abs(offset - rest[j]) * scale, np.float32(SMALLEST)), np.float32(LARGEST))
    for j in range(len(rest)):
        mantissa_bits[j] = (bits[j] & np.int32(0x7FFFFF)) | np.int32(0x3F800000)
    for j in range(len(rest)):
        part, value = mantissa[j] - np.float32(1.5), polynomial[DEGREE]
        for k in range(DEGREE):
            value = value * part + polynomial[DEGREE - 1 - k]
        shrunk = (
            max(
                magnitude[j] - value * powers[(bits[j] >> np.int32(23)) - np.int32(127 - EXPONENTS)] / beta,
                np.float32(0),
            )
            * factor
        )
        rest[j] += shrunk if offset > rest[j] else -shrunk if offset < rest[j] else np.float32(0)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _codes(positions, zero, bits, packed):  # type: ignore[no-untyped-def]
    """Choose and pack codes of eight rows at a time: they fill whole words, at any row length."""
    rows, columns = positions.shape
    top, width = np.float32(2**bits - 1), columns // zero.shape[1]
    for chunk in prange(-(-rows // CODES)):
        first, last = chunk * CODES, min(rows, (chunk + 1) * CODES)
        codes = np.zeros(-(-((last - first) * columns) // CODES) * CODES, np.uint8)
        for i in range(first, last):
            for group in range(zero.shape[1]):
                start, offset = group * width, zero[i, group]
                part, found = positions[i, start : start + width], codes[(i - first) * columns + start :]
                for j in range(width):
                    found[j] = np.uint8(min(max(np.rint(part[j] + offset), np.float32(0)), top))
        start = first * columns // CODES * bits
        pack_words(codes.view(np.uint64), bits, packed[start : start + len(codes) // CODES * bits])
