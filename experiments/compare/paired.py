"""Paired comparison over windows: is one run better than another, or is the difference chance of the text?

    python -m experiments.compare A B       # every difference of two runs; see difference.py for their names

Both runs read the same windows, so their negative log-likelihoods are compared window by window: difficulty
that a window has for both cancels, and differences far smaller than the spread of perplexity show. The 95 %
interval of the mean difference allows for neighbouring windows being alike, and for there being few of them
(`experiments/common/intervals.py`). Where it does not contain zero, one run is better. There is none with
fewer than 6 windows; with 4, where both rows have long ones in blocks.

The interval never says how either run would do on another kind of text, or with another seed of its method.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from experiments.common.intervals import mean_interval
from experiments.results.record import Row


class Verdict(enum.Enum):
    """Verdict of the interval on a run."""

    better = "better"
    worse = "worse"
    not_distinguishable = "not distinguishable"
    too_few_windows = "too few windows"

    @classmethod
    def of(cls, interval: tuple[float, float] | None) -> "Verdict":
        """Return the verdict on a difference with that interval, where less is better."""
        if interval is None:
            return cls.too_few_windows
        low, high = interval
        if low <= 0 <= high:
            return cls.not_distinguishable
        return cls.better if high < 0 else cls.worse


MARKS: Mapping[Verdict, str] = MappingProxyType(
    {Verdict.not_distinguishable: "≈", Verdict.too_few_windows: "(too few windows)"}
)
"""Marks of differences that decide nothing, for tables that have no column for the verdict."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of a run with another run of the same protocol."""

    delta_nll: float
    """Mean NLL less the other run's mean NLL, nats per token; negative is better."""
    interval: tuple[float, float] | None
    """95 % interval of `delta_nll`; None with too few windows."""
    windows: int

    @property
    def verdict(self) -> Verdict:
        return Verdict.of(self.interval)


def compare(row: Row, against: Row) -> Comparison:
    """Compare the mean NLL of two finished rows of one protocol.

    Raises:
        ValueError: their protocols differ, or a perplexity is missing or not finite; the message says which.
    """
    obstacles = differences(row, against)
    if obstacles:
        raise ValueError(
            f"rows {row['run_id']} and {against['run_id']} cannot be compared: {'; '.join(obstacles)}"
        )
    delta = np.asarray(_nll(row)) - np.asarray(_nll(against))
    return Comparison(float(delta.mean()), _interval(row, against, delta), len(delta))


def differences(row: Row, against: Row) -> list[str]:
    """Return the reasons why two rows cannot be compared, with both values of each; empty if they can."""
    broken = [one["run_id"] for one in (row, against) if not _nll(one) or not np.isfinite(_nll(one)).all()]
    if broken:
        return [f"{run_id} has no finite perplexity" for run_id in broken]
    first, second = conditions(row), conditions(against)
    return [f"{name} is {first[name]} and {second[name]}" for name in first if first[name] != second[name]]


def _interval(row: Row, against: Row, delta: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the interval of the mean of `delta`, by blocks of windows where both rows have the same ones."""
    kept = [each.get("samples", {}).get("perplexity", {}).get("block_nll", []) for each in (row, against)]
    if not kept[0] or len(kept[0]) != len(kept[1]) or len(kept[0]) % len(delta):
        return mean_interval(delta)
    return mean_interval(np.asarray(kept[0]) - np.asarray(kept[1]), len(kept[0]) // len(delta))


def _nll(row: Row) -> list[float]:
    """Return the NLL of every window; empty where no perplexity was measured."""
    return row.get("samples", {}).get("perplexity", {}).get("window_nll", [])


def conditions(row: Row) -> dict[str, object]:
    """Return the conditions that must be equal in two finished rows before they are compared.

    `windows` and `seqlen` are None where no perplexity was measured.
    """
    protocol, perplexity = row["protocol"], row["metrics"].get("perplexity", {})
    return {
        "model": row["identity"]["model"],
        "commit": protocol["model_commit"],
        "text": protocol["fingerprint"],
        "number of tokens": protocol["tokens"],
        "tokenizer": protocol["tokenizer"],
        "bos": perplexity.get("bos", protocol["bos"]),
        "dtype": protocol["dtype"],
        "device": row["identity"]["device"],
        "windows": perplexity.get("windows"),
        "seqlen": perplexity.get("seqlen"),
    }
