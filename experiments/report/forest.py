"""Differences with intervals: mean NLL against a reference run, and latency ratios.

Differences in NLL are paired by window (`experiments/compare/paired.py`).
"""

from experiments.common.intervals import FEWEST_WINDOWS
from experiments.compare.counterpart import Counterparts, compared
from experiments.compare.paired import Comparison, Verdict
from experiments.report.comparable import Entry, Group
from experiments.report.drawn import Intervals, Item
from experiments.results.speed import Pair, pair, rate

USUAL = ("sinq", "none")
"""Default references, the first present one counts: the method of this project, then the dense model."""


def reference(group: Group, against: str | None) -> str | None:
    """Return the name of the reference that runs of a group are compared with; None if the group has none.

    A name is a run id, a run's name or a method.
    """
    names = {
        name
        for entry in group.entries
        for name in (entry.row["run_id"], entry.row["name"], entry.row["choices"].get("method"))
    }
    return next((name for name in ((against,) if against else USUAL) if name in names), None)


def counterparts(group: Group, against: str | None) -> Counterparts | None:
    """Return the comparisons of a group's runs with their counterparts; None where it has no reference."""
    name = reference(group, against)
    return None if name is None else compared(group.rows, name)


def forest(group: Group, found: dict[str, Comparison], name: str | None) -> Intervals | None:
    """Return a forest plot of comparisons with the reference called `name`; None where there are none.

    Values are differences in mean NLL, nats per token.
    """
    items = tuple(
        _item(entry, found[entry.row["run_id"]]) for entry in group.entries if entry.row["run_id"] in found
    )
    if not items:
        return None
    note = (
        f"Below 0 is better than {name} (at the same bits and group size, where it has them)."
        f" {_meaning(items, next(iter(found.values())).windows)}"
    )
    return Intervals(
        "forest", f"NLL against {name}", "difference in mean NLL, nats per token", items, 0.0, note=note
    )


def _meaning(items: tuple[Item, ...], windows: int) -> str:
    """Return the explanation of lines and marks; all items have the same number of windows."""
    if items[0].interval is None:
        return f"No intervals: {windows} are too few windows, at least {FEWEST_WINDOWS} are needed."
    return f"Lines: paired 95 % intervals over {windows} windows; hollow: the interval holds 0."


def _item(entry: Entry, comparison: Comparison) -> Item:
    ends = comparison.interval
    words = "too few windows" if ends is None else f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"
    decided = comparison.verdict in (Verdict.better, Verdict.worse)
    label = f"{comparison.delta_nll:+.3f} {words}"
    return Item(entry.name, entry.style, comparison.delta_nll, ends, label, decided)


def latency(group: Group) -> list[Intervals]:
    """Return plots of prefill and decode speed over the dense model's, with the extremes of the rounds."""
    return [figure for phase in ("prefill", "decode") if (figure := _latency(group, phase))]


def _latency(group: Group, phase: str) -> Intervals | None:
    pairs = [(entry, timed) for entry in group.entries if (timed := pair(entry.row, phase))]
    if not pairs:
        return None
    items = tuple(_ratio(entry, timed) for entry, timed in pairs)
    rounds = " or ".join(map(str, sorted({timed.rounds for _, timed in pairs if timed.spread})))
    lines = f" Lines: spread of {rounds} rounds, smallest to largest ratio." if rounds else ""
    note = f"Above 1 is faster than the dense model, timed in turn in the same process.{lines}"
    return Intervals(
        f"latency_{phase}",
        f"Speed of {phase}",
        "tokens per second, compressed over dense",
        items,
        1.0,
        log=True,
        note=note,
    )


def _ratio(entry: Entry, timed: Pair) -> Item:
    low, high = timed.spread or (timed.ratio, timed.ratio)
    label = f"{timed.ratio:.2f}×, {rate(timed.dense)} → {rate(timed.compressed)} tok/s"
    return Item(entry.name, entry.style, timed.ratio, timed.spread, label, not low <= 1 <= high)
