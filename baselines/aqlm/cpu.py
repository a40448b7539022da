"""Loops of AQLM on a CPU. The definitions are in `method.py`, `kmeans.py` and `beam_search.py`.

A search of codes is many products of few numbers, so vectors lie side by side: codebooks are transposed to
(M, g, 2^B), and a register holds the scores of several vectors. Rows are independent of each other and are
split among threads; sixteen rows are processed together, so that the slice of the Hessian they all need stays
in cache. A hypothesis is a row's error, its codes and its gain. Surviving hypotheses stay at their index in
memory where they can, since most of the time most survive.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sinq.formats.additive import summed
from sinq.kernels.cpu.threads import array, torch_threads

FAST = {"reassoc", "contract", "nsz"}
ROWS = 16
"""Rows that share a slice of the Hessian while it is in cache."""
POINTS = 1024
"""Points of k-means that one thread takes at a time."""


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Find the nearest centroids like `baselines.aqlm.kmeans.nearest`."""
    codes = np.empty(len(points), np.int64)
    half = array(centroids.square().sum(1) / 2)
    with torch_threads():
        _nearest(array(points), array(centroids.T), half, codes)
    return torch.from_numpy(codes)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _nearest(points, turned, half, codes):  # type: ignore[no-untyped-def]
    count = len(points)
    for chunk in prange(-(-count // POINTS)):
        scores = np.empty(len(half), np.float32)
        for i in range(chunk * POINTS, min(count, (chunk + 1) * POINTS)):
            for c in range(len(half)):
                scores[c] = half[c]
            _subtract(scores, turned, points[i])
            codes[i] = _smallest(scores)


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _subtract(scores, turned, vector):  # type: ignore[no-untyped-def]
    """Subtract Σ_k turned[k, c] · vector[k] from scores[c].

    Four k are taken at a time, so that scores are read and written less often.
    """
    width, whole = len(vector), len(vector) // 4 * 4
    for k in range(0, whole, 4):
        a, b, c, d = vector[k], vector[k + 1], vector[k + 2], vector[k + 3]
        first, second, third, fourth = turned[k], turned[k + 1], turned[k + 2], turned[k + 3]
        for i in range(len(scores)):
            scores[i] -= first[i] * a + second[i] * b + third[i] * c + fourth[i] * d
    for k in range(whole, width):
        for i in range(len(scores)):
            scores[i] -= turned[k, i] * vector[k]


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _smallest(scores):  # type: ignore[no-untyped-def]
    """Return the index of the smallest score. The value is found first, because that loop vectorizes."""
    low = scores[0]
    for i in range(len(scores)):
        low = min(low, scores[i])
    for i in range(len(scores)):
        if scores[i] == low:
            return i
    return 0


def sweep(
    weight: Tensor, hessian: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor, beam: int, order: Tensor
) -> Tensor:
    """Visit all groups of all rows once, like `baselines.aqlm.beam_search.sweep`."""
    width = codebooks.shape[2]
    error = array(weight - summed(codes, codebooks).reshape(weight.shape) * scale[:, None])
    # H[G, G] of each group, and q(c) = c H[G, G] cᵀ of each vector
    blocks = hessian.reshape(len(order), width, len(order), width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    quadratic = torch.einsum("mck,jkl,mcl->jmc", codebooks, blocks, codebooks)
    found = codes.to(torch.int32).numpy().copy()
    turned = array(codebooks.transpose(1, 2))
    with torch_threads():
        _sweep(
            error,
            array(hessian),
            found,
            array(codebooks),
            turned,
            array(quadratic),
            array(scale),
            beam,
            order.numpy(),
        )
    return torch.from_numpy(found).long()


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _sweep(error, hessian, codes, codebooks, turned, norms, scale, beam, order):  # type: ignore[no-untyped-def]
    rows, columns = error.shape
    groups, count, (vectors, width) = codes.shape[1], codes.shape[2], codebooks.shape[1:]
    for chunk in prange(-(-rows // ROWS)):
        first, lanes = chunk * ROWS, min(ROWS, rows - chunk * ROWS)
        errors, held = (
            np.empty((lanes, beam, columns), np.float32),
            np.empty((lanes, beam, groups, count), np.int32),
        )
        gains, alive = np.zeros((lanes, beam), np.float32), np.ones(lanes, np.int32)
        errors[:, 0], held[:, 0] = error[first : first + lanes], codes[first : first + lanes]
        scores, slope, products = (
            np.empty(vectors, np.float32),
            np.empty(width, np.float32),
            np.empty((beam, width), np.float32),
        )
        for j in order:
            start = j * width
            block = hessian[start : start + width]
            for lane in range(lanes):
                for b in range(alive[lane]):
                    for k in range(width):
                        products[b, k] = _dot(errors[lane, b], block[k])
                for m in range(count):
                    alive[lane] = _visit(
                        errors[lane], held[lane], gains[lane], alive[lane], products, scores, slope,
                        block[:, start : start + width], codebooks[m], turned[m], norms[j, m],
                        scale[first + lane], j, m, start,
                    )  # fmt: skip
        for lane in range(lanes):
            codes[first + lane] = held[lane, _smallest(gains[lane, : alive[lane]])]


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _visit(  # type: ignore[no-untyped-def]
    errors, held, gains, alive, products, scores, slope, block, codebook, turned, norms, scale, j, m, start
):
    """Choose the vector of codebook m in group j for the hypotheses of a row.

    Returns the new number of hypotheses.

    Args:
        errors, held, gains: error, codes and gain of each hypothesis.
        alive: number of hypotheses before.
        products: e H[:, G] of each hypothesis.
        norms: q(c) of each vector.
        start: first column of the group.
    """
    beam, width, squared = len(gains), len(slope), scale * scale
    best = np.full(beam, np.inf, np.float32)
    parents, chosen, filled = np.zeros(beam, np.int32), np.zeros(beam, np.int32), 0
    for b in range(alive):
        present = held[b, j, m]
        for k in range(width):
            inner = np.float32(0)
            for i in range(width):
                inner += block[k, i] * codebook[present, i]
            slope[k] = np.float32(2) * scale * (products[b, k] + scale * inner)
        for c in range(len(scores)):
            scores[c] = squared * norms[c]
        _subtract(scores, turned, slope)
        base = gains[b] - scores[present]
        filled = _insert(best, parents, chosen, filled, gains[b], b, present)  # ties keep the present vector
        for c in range(len(scores)):
            if base + scores[c] < best[beam - 1] and c != present:
                filled = _insert(best, parents, chosen, filled, base + scores[c], b, c)
    _go_on(errors, held, gains, products, best[:filled], parents, chosen, block, codebook, scale, j, m, start)
    return filled


@njit(error_model="numpy", cache=True)
def _insert(best, parents, chosen, filled, value, parent, code):  # type: ignore[no-untyped-def]
    """Insert a pair into the ascending list of the best; return the list's new length."""
    if filled == len(best) and not value < best[filled - 1]:
        return filled
    slot = min(filled, len(best) - 1)
    while slot > 0 and best[slot - 1] > value:
        best[slot], parents[slot], chosen[slot] = best[slot - 1], parents[slot - 1], chosen[slot - 1]
        slot -= 1
    best[slot], parents[slot], chosen[slot] = value, parent, code
    return min(filled + 1, len(best))


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _go_on(errors, held, gains, products, best, parents, chosen, block, codebook, scale, j, m, start):  # type: ignore[no-untyped-def]
    """Turn the chosen pairs into hypotheses.

    The first pair of a parent takes that parent's index; any other pair takes the index of a parent without
    pairs.
    """
    count, width = len(best), codebook.shape[1]
    places, taken, used = (
        np.full(count, -1, np.int32),
        np.zeros(len(gains), np.bool_),
        np.zeros(len(gains), np.bool_),
    )
    for k in range(count):
        if not used[parents[k]]:
            used[parents[k]], taken[parents[k]], places[k] = True, True, parents[k]
    free = 0
    for k in range(count):
        if places[k] < 0:
            while taken[free]:
                free += 1
            taken[free], places[k] = True, free
            errors[free], held[free], products[free] = (
                errors[parents[k]],
                held[parents[k]],
                products[parents[k]],
            )
    for k in range(count):
        b = places[k]
        gains[b] = best[k]
        present = held[b, j, m]
        if chosen[k] == present:
            continue
        held[b, j, m] = chosen[k]
        for i in range(width):
            moved = scale * (codebook[chosen[k], i] - codebook[present, i])
            errors[b, start + i] -= moved
            for k2 in range(width):
                products[b, k2] -= moved * block[i, k2]


def scatter(gradient: Tensor, codes: Tensor, vectors: int) -> Tensor:
    """Sum the gradient by code like `baselines.aqlm.method.scatter`."""
    sums = np.zeros((codes.shape[1], vectors, gradient.shape[1]), np.float32)
    with torch_threads():
        _scatter(array(gradient), codes.numpy(), sums)
    return torch.from_numpy(sums)


@njit(parallel=True, fastmath=FAST, error_model="numpy", cache=True)
def _scatter(gradient, codes, sums):  # type: ignore[no-untyped-def]
    for m in prange(len(sums)):  # each codebook by one thread, in order: reproducible sums
        for i in range(len(codes)):
            row = sums[m, codes[i, m]]
            for k in range(len(row)):
                row[k] += gradient[i, k]
