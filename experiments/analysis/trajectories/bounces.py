"""Drop and rebound of a quantity of each layer over a training, and a verdict.

    drop = (first − minimum) / first,   rebound = (last − minimum) / (first − minimum)

A curve drops where it loses more than `LEAST_DROP` of its first value. It drops and rebounds where the
rebound is above `LEAST_REBOUND` besides, and with several seeds still so by one standard deviation less. With
one seed nothing is known of that spread, and the verdict says so. The minimum is one of the measured steps: a
dip between two of them is not seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from experiments.analysis.joma.laws import Bounce, bounce
from experiments.results.trajectories import FEWEST, Trajectory

LEAST_DROP, LEAST_REBOUND = 0.02, 0.1
ENTROPY, RANK = "attention_entropy.entropy", "stable_rank.stable_rank"
LOWER = ("fc1", "up_proj", "gate_proj")
"""Ends of the names of an MLP's lower matrices; both of a gated one."""


@dataclass(frozen=True)
class Line:
    """Drop and rebound of a layer; means over seeds."""

    training: str
    layer: str
    seeds: int
    start: float
    minimum: float
    step: float
    """Step of the minimum."""
    end: float
    drop: float
    rebound: float
    spread: float | None
    """Standard deviation of the rebound over seeds; None for one seed."""

    @property
    def verdict(self) -> str:
        if self.drop <= LEAST_DROP:
            return "no drop"
        if self.rebound <= LEAST_REBOUND:
            return "drop only"
        if self.spread is None:
            return "drop and rebound (one seed)"
        is_clear = self.rebound - self.spread > LEAST_REBOUND
        return "drop and rebound" if is_clear else "rebound within the spread of seeds"


def lines(found: Sequence[Trajectory], path: str) -> list[Line]:
    """Return a line for each layer of each training; of stable ranks, the lower matrices of MLPs alone.

    Args:
        path: of the samples, `ENTROPY` or `RANK`.
    """
    by_key: dict[str, list[Trajectory]] = {}
    for each in found:
        by_key.setdefault(each.key, []).append(each)
    return [line for seeds in by_key.values() for line in _of(seeds, path)]


def _of(seeds: Sequence[Trajectory], path: str) -> Iterator[Line]:
    by_seed = [each.layers(path) for each in seeds]
    for layer in by_seed[0]:
        if path == RANK and not layer.endswith(LOWER):
            continue
        curves = [each[layer] for each in by_seed if len(each.get(layer, {})) >= FEWEST]
        if curves:
            yield _line(seeds[0].name, layer, curves)


def _line(training: str, layer: str, curves: Sequence[Mapping[int, float]]) -> Line:
    found = [_bounce(curve) for curve in curves]
    rebounds = [each.rebound for each in found]
    return Line(
        training,
        layer,
        len(found),
        fmean(each.start for each in found),
        fmean(each.minimum for each in found),
        fmean(each.step for each in found),
        fmean(each.end for each in found),
        fmean(each.drop for each in found),
        fmean(rebounds),
        stdev(rebounds) if len(rebounds) > 1 else None,
    )


def _bounce(curve: Mapping[int, float]) -> Bounce:
    """Return the bounce of a curve, with the minimum's step in place of its position."""
    found = bounce(np.array(list(curve.values())))
    return Bounce(found.start, found.minimum, list(curve)[found.step], found.end)
