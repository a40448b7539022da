"""Product x Ŵᵀ on a processor by look-up tables, from packed codes of an additive format (as in AQLM).

A group of inputs x_j meets the same few vectors in every row, so their products are computed once, and a row
only adds up entries:

    lut[j, m, c] = x_j · codebook[m, c]            y[r] = scale[r] · Σ_j Σ_m lut[j, m, codes[r, j, m]]

The matrix is never written. Groups are taken a few at a time, so that their part of the table lies in a
core's first-level cache while all rows of that core pass over it. Threads divide the rows: no two write to
one entry. That pays for a few rows of x (decoding); for many, the matrix is dequantized and multiplied.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.formats.additive import BYTE, AdditiveTensor
from sinq.kernels.cpu.threads import array, torch_threads

FAST = {"reassoc", "contract", "nsz"}
FEW = 4
"""Rows of x up to which the matrix is not written."""
CACHE = 1 << 13
"""Entries of the table that are used together: 32 KiB."""
ROWS = 64
"""Rows that one thread takes at a time."""


def refusal(value: AdditiveTensor) -> str | None:
    """Return the reason why `product` cannot take a value, or None where it can."""
    bits = value.format.bits_per_codebook
    if bits <= BYTE:
        return None
    return f"bits_per_codebook={bits}: tables of more than {BYTE} bits outweigh the matrix"


def product(value: AdditiveTensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Ŵᵀ + b. No gradient flows through it.

    Args:
        value: Ŵ, (out_features, in_features).
        x: (..., in_features).
        bias: (out_features,), or None for 0.

    Returns:
        (..., out_features) in the dtype of x.

    Raises:
        ValueError: x has another number of features than the matrix.
    """
    if x.shape[-1] != value.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} features; the matrix takes {value.shape[1]}")
    if x.numel() // x.shape[-1] > FEW:
        return torch.nn.functional.linear(x, value.dequantize(x.dtype), bias)
    run = _operator if torch.compiler.is_compiling() else _linear
    result: Tensor = run(x, value.tensors["codes"], value.codebooks(), value.scale())
    return result if bias is None else result + bias


def _linear(x: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor) -> Tensor:
    count, vectors, width = codebooks.shape
    inputs = x.detach().float().reshape(-1, x.shape[-1] // width, width)
    outputs = np.empty((len(inputs), len(scale)), np.float32)
    with torch_threads():
        for token, output in zip(inputs, outputs, strict=True):
            table = (token @ codebooks.reshape(-1, width).T).reshape(-1, count, vectors)
            _add_up(array(table), codes.numpy(), vectors.bit_length() - 1, array(scale), output)
    return torch.from_numpy(outputs).reshape(*x.shape[:-1], len(scale)).to(x.dtype)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _add_up(table, codes, bits, scale, output):  # type: ignore[no-untyped-def]
    groups, count, vectors = table.shape
    rows, step = len(output), max(1, CACHE // (count * vectors))
    for chunk in prange(-(-rows // ROWS)):
        first, last = chunk * ROWS, min(rows, (chunk + 1) * ROWS)
        output[first:last] = 0
        for start in range(0, groups, step):
            end = min(start + step, groups)
            part = table[start:end].reshape(-1)
            for r in range(first, last):
                position = (r * groups + start) * count
                if bits == 8:
                    output[r] += _entries(part, codes[position : position + (end - start) * count], vectors)
                else:
                    output[r] += _entries_packed(part, codes, position, bits, (end - start) * count)
        for r in range(first, last):
            output[r] *= scale[r]


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _entries(part, codes, vectors):  # type: ignore[no-untyped-def]
    """Σ_k part[k, codes[k]] in four independent sums: an entry need not wait for the previous one."""
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    whole = len(codes) // 4 * 4
    for k in range(0, whole, 4):
        a += part[k * vectors + codes[k]]
        b += part[(k + 1) * vectors + codes[k + 1]]
        c += part[(k + 2) * vectors + codes[k + 2]]
        d += part[(k + 3) * vectors + codes[k + 3]]
    for k in range(whole, len(codes)):
        a += part[k * vectors + codes[k]]
    return (a + b) + (c + d)


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _entries_packed(part, packed, position, bits, count):  # type: ignore[no-untyped-def]
    """Σ_k part[k, code_k] of `count` codes from `position` on, in a stream of codes of `bits` bits."""
    total, mask = np.float32(0), (1 << bits) - 1
    for k in range(count):
        bit = (position + k) * bits
        low = np.int64(packed[bit >> 3])
        high = np.int64(packed[(bit >> 3) + 1]) if (bit & 7) + bits > 8 else np.int64(0)
        total += part[(k << bits) + (((low | (high << 8)) >> (bit & 7)) & mask)]
    return total


_operator = torch.library.custom_op("sinq::cpu_additive", _linear, mutates_args=())
"""`_linear` as one node of a compiled graph."""


@_operator.register_fake
def _shape(x: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(scale))
