"""Is one run better than another, or is the difference only which text was read? A paired bootstrap over windows.

    python -m experiments.compare A B       # two runs in all they differ in; see contrast.py for how they are named

Both runs read the same windows, so their negative log-likelihoods are compared window by window: what makes a window hard for both
cancels, and differences far smaller than the spread of perplexity show. Windows are drawn again with replacement 10,000 times; the middle
95 % of the mean differences are the interval (percentile bootstrap: Efron & Tibshirani 1993, ch. 13). Where it does not contain zero, one
run is better.

With few windows the interval is too narrow: of normal differences it covers the mean in 87 % of cases at 6 windows, 93 % at 16 and 95 % at
149. What it never says: how either run would do on another kind of text, or with another seed of its method.
"""

import enum
from dataclasses import dataclass

import numpy as np

from experiments.common.intervals import bootstrap_interval
from experiments.results.record import Row

FEWEST_WINDOWS = 6
"""With fewer, even windows that all agree are no evidence: n fair coins fall on one side in 2 of 2ⁿ cases, over 5 % up to n = 5."""


class Verdict(enum.Enum):
    """What the interval says of a run."""

    better = "better"
    worse = "worse"
    not_distinguishable = "not distinguishable"
    too_few_windows = "too few windows"


@dataclass(frozen=True)
class Comparison:
    """A run against another one of the same protocol."""

    delta_nll: float
    """Mean NLL less that of the other, nats per token; negative is better."""
    low: float
    high: float
    """95 % interval of `delta_nll`."""
    windows: int

    @property
    def verdict(self) -> Verdict:
        if self.low <= 0 <= self.high:
            return Verdict.not_distinguishable
        if self.windows < FEWEST_WINDOWS:
            return Verdict.too_few_windows
        return Verdict.better if self.high < 0 else Verdict.worse


def compare(row: Row, against: Row) -> Comparison:
    """Two finished rows of one protocol.

    Raises:
        ValueError: their protocols differ, or a perplexity is missing or not finite; the message names what.
    """
    obstacles = differences(row, against)
    if obstacles:
        raise ValueError(
            f"rows {row['run_id']} and {against['run_id']} cannot be compared: {'; '.join(obstacles)}"
        )
    delta = np.asarray(_nll(row)) - np.asarray(_nll(against))
    low, high = bootstrap_interval(delta)
    return Comparison(float(delta.mean()), low, high, len(delta))


def differences(row: Row, against: Row) -> list[str]:
    """Why two rows cannot be compared: what differs, with both values. Empty if they can."""
    broken = [
        each["run_id"] for each in (row, against) if not _nll(each) or not np.isfinite(_nll(each)).all()
    ]
    if broken:
        return [f"{run_id} has no finite perplexity" for run_id in broken]
    own, other = conditions(row), conditions(against)
    return [f"{part} is {own[part]} and {other[part]}" for part in own if own[part] != other[part]]


def _nll(row: Row) -> list[float]:
    return row.get("samples", {}).get("perplexity", {}).get("window_nll", [])


def conditions(row: Row) -> dict[str, object]:
    """What must be equal in two finished rows that are compared; windows are None where no perplexity was measured."""
    protocol, perplexity = row["protocol"], row["metrics"].get("perplexity", {})
    return {
        "model": row["identity"]["model"],
        "commit": protocol["model_commit"],
        "text": protocol["fingerprint"],
        "number of tokens": protocol["tokens"],
        "tokenizer": protocol["tokenizer"],
        "bos": protocol["bos"],
        "dtype": protocol["dtype"],
        "device": row["identity"]["device"],
        "windows": perplexity.get("windows"),
        "seqlen": perplexity.get("seqlen"),
    }
