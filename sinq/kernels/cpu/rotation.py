"""Rotation of rows on a processor: butterflies in a core's cache; see `sinq/kernels/rotation.py`.

The power of two in n is the length of a segment; a row has one segment for each row of Paley's matrix. Some
segments at a time are copied, transposed, so that a butterfly adds and subtracts what lies side by side
whatever its distance in the segment: one row of 1536 numbers is twelve segments of 128. Two passes of
butterflies are one, which reads and writes half as often.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.formats.rotation import Rotation, factors, paley_product, product, segment_length
from sinq.kernels.cpu.threads import torch_threads

FAST = {"reassoc", "contract", "nsz"}
LANES = 16
"""Most segments in a tile: two vectors of eight numbers, or one of sixteen."""
TILE = 1 << 15
"""Numbers in a tile, 128 KiB, unless one segment is longer."""
SMALL = 1 << 15
"""Numbers below which a second thread does not pay."""


def rotated_rows(rows: Tensor, rotation: Rotation, back: bool = False) -> Tensor:
    """See `sinq.kernels.rotation.rotated_rows`."""
    given = rows.detach().float().contiguous()
    if len(factors(rotation.size)) <= 1:
        scale = torch.from_numpy(_scaled_signs(rotation.signs.numpy(), rotation.size))
        return product(given, transposed=True) * scale if back else product(given * scale, transposed=False)
    if back:
        return _transformed(paley_product(given, transposed=True), rotation, back)
    return paley_product(_transformed(given, rotation, back), transposed=False)


def _transformed(rows: Tensor, rotation: Rotation, back: bool) -> Tensor:
    """Return signs times the butterflies of rows (..., n), or the butterflies of signs times rows."""
    length = segment_length(rotation.size)
    given, out = rows.numpy().reshape(-1, length), np.empty(rows.shape, np.float32)
    lanes = max(1, min(LANES, TILE // length))
    arguments = (given, rotation.signs.numpy(), rotation.size, back, lanes, out.reshape(-1, length))
    if given.size < SMALL or torch.get_num_threads() == 1:
        _transform_few(*arguments)
    else:
        with torch_threads():
            _transform(*arguments)
    return torch.from_numpy(out)


@njit(cache=True)
def _scaled_signs(signs, size):  # type: ignore[no-untyped-def]
    """Unpack signs, divided by √n."""
    scaled = np.empty(size, np.float32)
    one = np.float32(1) / np.float32(np.sqrt(size))
    for j in range(size):
        scaled[j] = -one if signs[j >> 3] >> (j & 7) & 1 else one
    return scaled


@njit(cache=True)
def _factors(signs, size, back):  # type: ignore[no-untyped-def]
    """Return what rows are multiplied by before and after the butterflies: scaled signs, and ones."""
    scaled, ones = _scaled_signs(signs, size), np.ones(size, np.float32)
    return (ones, scaled) if back else (scaled, ones)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _transform(segments, signs, size, back, lanes, out):  # type: ignore[no-untyped-def]
    before, after = _factors(signs, size, back)
    for tile in prange(-(-len(segments) // lanes)):
        first, last = tile * lanes, min(len(segments), (tile + 1) * lanes)
        _transform_tile(segments[first:last], before, after, first, out[first:last])


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _transform_few(segments, signs, size, back, lanes, out):  # type: ignore[no-untyped-def]
    before, after = _factors(signs, size, back)
    for first in range(0, len(segments), lanes):
        last = min(len(segments), first + lanes)
        _transform_tile(segments[first:last], before, after, first, out[first:last])


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _transform_tile(segments, before, after, number, out):  # type: ignore[no-untyped-def]
    """Transform segments, the first of which is segment `number` of all rows."""
    lanes, length = segments.shape
    tile = np.empty((length, lanes), np.float32)
    for i in range(lanes):
        start = (number + i) * length % len(before)
        scale = before[start : start + length]
        for j in range(length):
            tile[j, i] = segments[i, j] * scale[j]
    apart = 1
    while 2 * apart < length:
        _two_passes(tile.reshape(-1, 4, apart * lanes))
        apart *= 4
    if apart < length:
        _pass(tile.reshape(-1, 2, apart * lanes))
    for i in range(lanes):
        start = (number + i) * length % len(after)
        scale = after[start : start + length]
        for j in range(length):
            out[i, j] = tile[j, i] * scale[j]


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _pass(x):  # type: ignore[no-untyped-def]
    """Replace numbers at a distance, (pairs, 2, distance), by their sum and difference."""
    for k in range(x.shape[0]):
        for j in range(x.shape[2]):
            a, b = x[k, 0, j], x[k, 1, j]
            x[k, 0, j], x[k, 1, j] = a + b, a - b


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _two_passes(x):  # type: ignore[no-untyped-def]
    """Do two passes, of a distance and of twice the distance, on (fours, 4, distance)."""
    for k in range(x.shape[0]):
        for j in range(x.shape[2]):
            a, b = x[k, 0, j] + x[k, 1, j], x[k, 0, j] - x[k, 1, j]
            c, d = x[k, 2, j] + x[k, 3, j], x[k, 2, j] - x[k, 3, j]
            x[k, 0, j], x[k, 1, j], x[k, 2, j], x[k, 3, j] = a + c, b + d, a - c, b - d
