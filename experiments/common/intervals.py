"""95 % intervals: of the mean of windows that lie next to each other, of shares, of paired shares.

Neighbouring windows of a text are alike, so n of them say less about the text than n independent ones. The
mean's variance is therefore read from the slow waves in the values y (equally weighted cosines, EWC: Müller
2007; Lazarus, Lewis, Stock & Watson 2018), with as many waves as the text is long enough to show:

    λ_j = √(2/n) Σ_i y_i cos(π j (i + ½) / n)        j = 1 … ν,    ν = ⌊1.2 n^0.4⌋
    half = t_ν √( Σ_j r_j λ_j² / (ν n) )             interval: mean ± half

The waves are nearly independent and normal, so Student's t with ν degrees of freedom is the critical value,
at small n too. A wave of finite length sees less variance than the mean, the more so the fewer windows there
are. r_j is what is missing where neighbours have a correlation of ρ = 0.35, the ratio of the spectral
densities of a first-order autoregression at frequency 0 and at πj/n:

    r_j = (1 − 2 ρ cos(π j / n) + ρ²) / (1 − ρ)²

ρ is fixed, not estimated: 6 or 16 values cannot tell 0 from 0.5. Paired differences between windows of
WikiText-2 have 0.2–0.4; `docs/measurement.md` has the coverage from 0 to 0.5. Few waves (the usual rule is
0.4 n^(2/3)) leave room for correlation that lasts longer than that. Nothing is drawn at random.

Where each window comes in b blocks, the waves are taken over the n = W b blocks, with W in place of n in the
cosines of r_j (ρ still belongs to neighbouring windows), and with one more wave from 10 windows on. The
interval then is about a tenth narrower, and there is one from 4 windows on. More waves would be narrower
still, and cover too little where neighbouring windows are alike.

Not covered: correlation over a good part of the windows, such as a text that changes its kind halfway.
"""

from functools import lru_cache
from math import cos, pi, sin, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
FEWEST_WINDOWS = 6
"""Fewest windows for an interval: n fair coins all fall on one side in 2 of 2ⁿ cases, over 5 % up to n = 5.

So with fewer windows, even windows that all agree are no evidence.
"""
FEWEST_IN_BLOCKS = 4
"""Fewest windows for an interval where each comes in at least `FEWEST_BLOCKS` blocks."""
FEWEST_BLOCKS = 8
ENOUGH_WINDOWS = 10
"""Fewest windows whose blocks show one more wave than windows do."""
CORRELATION = 0.35
"""Correlation ρ of neighbouring windows that the weights r_j make up for."""
WAVES = 1.2
"""Factor of n^0.4 in the number of waves ν."""


def mean_interval(values: NDArray[np.float64], blocks: int = 1) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of the text that `values` (n,), in its order, are a part of.

    None with fewer windows than `FEWEST_WINDOWS`, or than `FEWEST_IN_BLOCKS` of `FEWEST_BLOCKS` blocks.

    Args:
        values: one for each window, or one for each block.
        blocks: number of values that each window has.
    """
    half = wave_values(values, blocks)
    if half is None:
        return None
    mean, length = float(values.mean()), float(np.linalg.norm(half))
    return mean - length, mean + length


def wave_values(values: NDArray[np.float64], blocks: int = 1) -> NDArray[np.float64] | None:
    """Return the vector (ν,) whose length is the half width of `mean_interval`; None where that is None.

    The vector is linear in the values: that of a paired difference is the difference of both vectors. So n
    rows have n vectors, and an interval for each of their n² pairs.
    """
    fewest = FEWEST_IN_BLOCKS if blocks >= FEWEST_BLOCKS else FEWEST_WINDOWS
    if len(values) < fewest * blocks:
        return None
    found: NDArray[np.float64] = _waves(len(values), blocks) @ (values - values.mean())
    return found


@lru_cache(maxsize=64)
def _waves(n: int, blocks: int) -> NDArray[np.float64]:
    """Return the matrix (ν, n) whose product with values has the half width of their interval as its norm."""
    windows = n // blocks
    count = int(WAVES * windows**0.4) + (blocks > 1 and windows >= ENOUGH_WINDOWS)
    frequencies = np.pi * np.arange(1, count + 1)[:, None] / n
    alike = np.cos(frequencies * blocks)
    missing = (1 - 2 * CORRELATION * alike + CORRELATION**2) / (1 - CORRELATION) ** 2
    waves = np.sqrt(2 / n) * np.cos(frequencies * (np.arange(n) + 0.5))
    return t_quantile(count) * np.sqrt(missing / (count * n)) * waves


def t_quantile(degrees: int) -> float:
    """Return the value that |t| stays below in 95 % of cases: Student's t with `degrees` ≥ 1 of freedom.

    The distribution is elementary at whole degrees (Abramowitz & Stegun 26.7.3–4); it is inverted by
    bisection over the angle θ = arctan(t/√ν).
    """
    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < LEVEL else (low, middle)
    return sqrt(degrees) * sin(low) / cos(low)


def _t_within(angle: float, degrees: int) -> float:
    """Return P(|t| < √ν tan(angle))."""
    odd = degrees % 2
    term, total = cos(angle) if odd else 1.0, 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (k - 1) / k
    return (angle + sin(angle) * total) * 2 / pi if odd else sin(angle) * total


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


def paired_shares(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares of the same n independent items.

    The interval is Wald's with one more item gained and one more lost (Bonett & Price 2012): it is as honest
    with few items, or none changed, as with many.

    Args:
        gained: items that count in the first share alone.
        lost: items that count in the second share alone.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)
