"""Differences with intervals: mean NLL against a reference run, and speeds over the dense model's.

Differences in NLL are paired by window (`experiments/compare/paired.py`).
"""

from collections.abc import Mapping
from typing import Any

from experiments.common.intervals import FEWEST_WINDOWS
from experiments.compare.paired import Comparison, Verdict
from experiments.report.comparable import Group
from experiments.report.figure import Figure
from experiments.report.figures import strips
from experiments.report.figures.series import Series, facts
from experiments.results.speed import Pair, pair, rate

PHASES = ("prefill", "decode")


def forest(
    group: Group, series: Series, found: Mapping[str, Comparison], against: str | None
) -> Figure | None:
    """Return the differences in mean NLL from a reference, nats per token; None where there are none.

    Args:
        found: run id → comparison with the reference.
        against: name of the reference.
    """
    every = [(entry, found.get(entry.row["run_id"])) for entry in group.entries]
    compared = [(entry, each) for entry, each in every if each]
    rows = tuple(facts(entry, series) | _difference(each) for entry, each in compared)
    note = f"Below 0 is better than {against} (at the same bits and group size, where it has them)."
    note = f"{note} {_meaning([each for _, each in compared])}"
    axis = "difference in mean NLL, nats per token"
    return strips.intervals("forest", f"NLL against {against}", axis, rows, series, neutral=0.0, note=note)


def _difference(comparison: Comparison) -> dict[str, Any]:
    low, high = comparison.interval or (None, None)
    words = "too few windows" if low is None else f"[{low:+.3f}, {high:+.3f}]"
    return {
        "value": comparison.delta_nll, "low": low, "high": high,
        "decided": comparison.verdict in (Verdict.better, Verdict.worse),
        "label": f"{comparison.delta_nll:+.3f} {words}",
    }  # fmt: skip


def _meaning(comparisons: list[Comparison]) -> str:
    """Return the explanation of lines and marks; all comparisons have the same number of windows."""
    if not comparisons:
        return ""
    windows = comparisons[0].windows
    if comparisons[0].interval is None:
        return f"No intervals: {windows} are too few windows, at least {FEWEST_WINDOWS} are needed."
    return f"Lines: paired 95 % intervals over {windows} windows; hollow: the interval holds 0."


def latency(group: Group, series: Series) -> list[Figure]:
    """Return prefill and decode speed over the dense model's, with the extremes of the rounds."""
    return [figure for phase in PHASES if (figure := _latency(group, series, phase))]


def _latency(group: Group, series: Series, phase: str) -> Figure | None:
    pairs = [(entry, timed) for entry in group.entries if (timed := pair(entry.row, phase))]
    rows = tuple(facts(entry, series) | _ratio(timed) for entry, timed in pairs)
    rounds = " or ".join(map(str, sorted({timed.rounds for _, timed in pairs if timed.spread})))
    lines = (
        f" Lines: spread of {rounds} rounds, smallest to largest ratio; hollow: it holds 1." if rounds else ""
    )
    note = f"Above 1 is faster than the dense model, timed in turn in the same process.{lines}"
    axis = "tokens per second, compressed over dense"
    return strips.intervals(
        f"latency_{phase}", f"Speed of {phase}", axis, rows, series,
        neutral=1.0, log=True, number=",.3~r", note=note,
    )  # fmt: skip


def _ratio(timed: Pair) -> dict[str, Any]:
    low, high = timed.spread or (None, None)
    return {
        "value": timed.ratio, "low": low, "high": high,
        "decided": low is not None and high is not None and not low <= 1 <= high,
        "label": f"{timed.ratio:.2f}×, {rate(timed.dense)} → {rate(timed.compressed)} tok/s",
    }  # fmt: skip
