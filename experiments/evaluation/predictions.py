"""Distribution of what compression changed: a mean divergence hides where it comes from.

Two models of equal mean divergence may differ in kind: one is a little off at every position, the other right
at most and lost at a few. So the exact divergence (`positions.py`) has percentiles up to the maximum, a
histogram, and means by what was predicted:

    by confidence   of the dense model: a flip where it was sure is a worse one
    by position     in the window, in octaves: errors that add up along a text show here
    by frequency    of the right token among those measured: rare words suffer first

Δp is the change of the right token's probability; its mean is the model's loss in plain probability, its root
mean square the noise (llama.cpp prints both).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.positions import Numbers, Positions

QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999, "max": 1.0}
LOWER = {"min": 0.0, "p0_1": 0.001, "p1": 0.01, "p5": 0.05}
"""Percentiles of Δp below the median."""
CONFIDENCE = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 1.0)
"""Edges of the groups by the dense model's largest probability."""
DECADES, PER_DECADE = (-8, 2), 4
"""Powers of ten from which to which the histogram of KL reaches, and its bins in each decade."""


def metrics(changed: Positions) -> dict[str, Any]:
    """Return the numbers that describe the changes, all of them finite if the predictions are."""
    delta = changed.delta_p
    return {
        "kl": float(changed.kl.mean()),
        **_quantiles("kl", changed.kl, QUANTILES),
        "delta_p": float(delta.mean()),
        "delta_p_rms": float(np.sqrt((delta**2).mean())),
        **_quantiles("delta_p", delta, LOWER | QUANTILES),
        "same_top": float(1 - changed.flipped.mean()),
        "tie_rate": float(changed.tied.mean()),
        "positions": len(changed.kl),
    }


def _quantiles(name: str, values: Numbers, wanted: dict[str, float]) -> dict[str, float]:
    found = np.quantile(values, list(wanted.values()))
    return {f"{name}_{label}": float(value) for label, value in zip(wanted, found, strict=True)}


def groups(changed: Positions, positions: int) -> dict[str, Any]:
    """Return the histogram of KL, and means by confidence, position and frequency; plain lists.

    Args:
        changed: the changes in whole windows.
        positions: of each window.
    """
    position: Numbers = np.arange(len(changed.kl), dtype=np.float64) % positions + 1
    _, inverse, counts = np.unique(changed.token, return_inverse=True, return_counts=True)
    frequency: Numbers = counts[inverse].astype(np.float64)
    return {
        "kl_histogram": histogram(changed.kl),
        "by_confidence": list(_means(changed, changed.confidence, CONFIDENCE)),
        "by_position": list(_means(changed, position, _octaves(positions))),
        "by_frequency": list(_means(changed, frequency, _octaves(counts.max(), 4))),
    }


def trace(changed: Positions) -> dict[str, list[float]]:
    """Return the divergence, Δp and id of each token, to four digits."""
    columns = {"kl": changed.kl, "delta_p": changed.delta_p}
    rounded = {name: [float(f"{value:.4g}") for value in column] for name, column in columns.items()}
    return {"token": changed.token.tolist(), **rounded}


def histogram(kl: Numbers) -> dict[str, Any]:
    """Return counts of positions by log10 of KL; the first and last bin take what lies outside.

    Rounding may leave a KL of a few 1e-8 below zero: it counts as the smallest.
    """
    low, high = DECADES
    bins = (high - low) * PER_DECADE
    found = np.floor((np.log10(np.maximum(kl, 1e-30)) - low) * PER_DECADE)
    counts = np.bincount(np.clip(found, 0, bins - 1).astype(np.int64), minlength=bins)
    return {"decades": list(DECADES), "per_decade": PER_DECADE, "counts": counts.tolist()}


def _octaves(largest: float, factor: int = 2) -> tuple[float, ...]:
    """Return 1, factor, factor² … up to the first that is larger than `largest`."""
    steps = int(np.floor(np.log(largest) / np.log(factor) + 1e-9)) + 1
    return tuple(float(factor**step) for step in range(steps + 1))


def _means(changed: Positions, by: Numbers, edges: tuple[float, ...]) -> Iterator[dict[str, float]]:
    """Yield the means over positions whose value lies from one edge to the next, where there are any."""
    group: NDArray[np.int64] = np.clip(np.searchsorted(edges, by, "right") - 1, 0, len(edges) - 2)
    for number, (first, after) in enumerate(pairwise(edges)):
        chosen = group == number
        if chosen.any():
            yield {
                "from": first,
                "to": after,
                "positions": int(chosen.sum()),
                "kl": float(changed.kl[chosen].mean()),
                "flip_rate": float(changed.flipped[chosen].mean()),
                "delta_p": float(changed.delta_p[chosen].mean()),
            }
