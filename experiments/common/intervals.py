"""Confidence intervals of means (bootstrap) and of shares (Wilson)."""

from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES, LEVEL, SEED = 10_000, 0.95, 0
AT_ONCE = 2**20
"""Drawn values in memory at once."""


def bootstrap_interval(values: NDArray[np.float64], resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of `values` (n,).

    The seed is fixed, so the same values give the same interval. Source: Efron & Tibshirani 1993, ch. 13.
    """
    generator, n = np.random.default_rng(SEED), len(values)
    at_once = max(1, AT_ONCE // n)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = np.concatenate([values[generator.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def share(happened: "np.ndarray[Any, Any]") -> dict[str, float]:
    """Return the share of true values among `happened` (n,), with Wilson's 95 % interval (Wilson 1927)."""
    n, count = len(happened), int(happened.sum())
    z, rate = NormalDist().inv_cdf((1 + LEVEL) / 2), count / n
    middle, half = rate + z * z / (2 * n), z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return {
        "value": rate,
        "low": max(0.0, (middle - half) / scale),
        "high": min(1.0, (middle + half) / scale),
        "count": count,
    }
