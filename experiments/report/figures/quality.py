"""Measures that figures put on their axes: quality, size and speed, with the intervals that rows know.

Perplexity has the interval of its ratio to the dense model's, paired by window: how hard the text is cancels.
The divergence from the dense model has the interval of its mean over windows, a speed its slowest and fastest
round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, isfinite

import numpy as np

from experiments.common.intervals import mean_interval
from experiments.compare.paired import compare, differences
from experiments.report.comparable import Entry, Group
from experiments.results import speed
from experiments.results.paths import get_path

Ends = tuple[float, float] | None
FLOOR = "cast"
"""Method that rounds the dense model's weights to another number format: the noise floor of divergences."""


@dataclass(frozen=True)
class Quality:
    """A measure of quality: less is better."""

    key: str
    title: str
    axis: str
    path: str
    format: str
    interval: Callable[[Entry, Group], Ends]
    meaning: str
    """Meaning of the interval."""


@dataclass(frozen=True)
class Cost:
    """A measure of cost."""

    key: str
    title: str
    axis: str
    of: Callable[[Entry], float | None]
    interval: Callable[[Entry], Ends] = lambda _: None
    is_speed: bool = False
    """True where more is better, and factors count."""


def finite(entry: Entry, path: str) -> float | None:
    """Return a metric of a run; None where it is missing or not finite."""
    value = get_path(entry.row["metrics"], path)
    return float(value) if value is not None and isfinite(value) else None


def _of_ratio(entry: Entry, group: Group) -> Ends:
    """Return the ends of the perplexity, as the dense model's times the interval of the paired ratio."""
    if group.dense is None or entry.is_dense or differences(entry.row, group.dense.row):
        return None
    ends = compare(entry.row, group.dense.row).interval
    dense = group.dense.row["metrics"]["perplexity"]["value"]
    return None if ends is None else (dense * exp(ends[0]), dense * exp(ends[1]))


def _of_mean(sample: str) -> Callable[[Entry, Group], Ends]:
    def interval(entry: Entry, _: Group) -> Ends:
        values = get_path(entry.row.get("samples", {}), f"perplexity.{sample}") or []
        return mean_interval(np.asarray(values, dtype=np.float64))

    return interval


PERPLEXITY = Quality(
    "pareto", "Perplexity", "perplexity", "perplexity.value", ",.2f", _of_ratio,
    "95 % intervals of the ratio to the dense model, paired by window",
)  # fmt: skip
EXACT = Quality(
    "kl", "Divergence", "KL from the dense model, nats per token",
    "perplexity.divergence.kl", ",.4~r", _of_mean("window_divergence"), "95 % intervals over windows",
)  # fmt: skip
BOUND = Quality(
    "kl", "Divergence (lower bound)", "KL from the dense model, nats per token, at least",
    "perplexity.kl", ",.4~r", _of_mean("window_kl"), "95 % intervals over windows",
)  # fmt: skip


def _megabytes(entry: Entry) -> float | None:
    stored = finite(entry, "size.model_nbytes")
    return None if stored is None else stored * 1e-6


def _decode(entry: Entry) -> float | None:
    timed = speed.pair(entry.row, "decode")
    return timed.ratio if timed else None


def _rounds(entry: Entry) -> Ends:
    timed = speed.pair(entry.row, "decode")
    return timed.spread if timed else None


COSTS = (
    Cost(
        "bits", "bits per weight", "bits per weight of the linear layers, scales included",
        lambda entry: finite(entry, "size.bits_per_weight"),
    ),
    Cost("bytes", "bytes", "MB stored, whole model", _megabytes),
    Cost(
        "decode", "speed of decoding", "tokens per second in decoding, compressed over dense",
        _decode, _rounds, is_speed=True,
    ),
)  # fmt: skip


def divergence(group: Group) -> Quality:
    """Return the divergence that more runs have: the exact one, or its lower bound."""
    exact, bound = (
        sum(finite(entry, each.path) is not None for entry in group.entries) for each in (EXACT, BOUND)
    )
    return EXACT if exact >= bound else BOUND


def is_floor(entry: Entry) -> bool:
    """True for the dense model in another number format."""
    return bool(get_path(entry.row, "identity.method.name") == FLOOR)
