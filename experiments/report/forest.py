"""Differences with intervals: mean NLL against a reference run, paired by window (`experiments/compare/paired.py`); and latency ratios."""

from experiments.compare.counterpart import compared
from experiments.compare.paired import Comparison, Verdict
from experiments.report.comparable import Entry, Group
from experiments.report.figures import Intervals, Item
from experiments.results.record import get_path

USUAL = ("sinq", "none")
"""What runs are compared with unless the user names something: the method this project is about, or the dense model."""


def reference(group: Group, against: str | None) -> str | None:
    """The name runs of a group are compared with; None if it has no such run."""
    names = {
        name
        for entry in group.entries
        for name in (entry.row["run_id"], entry.row["name"], entry.row["choices"].get("method"))
    }
    return next((name for name in ((against,) if against else USUAL) if name in names), None)


def comparisons(group: Group, against: str | None) -> dict[str, Comparison]:
    """Run id → the run against its counterpart; runs without one are left out.

    Raises:
        ValueError: a run has several counterparts; the message lists them.
    """
    name = reference(group, against)
    if name is None:
        return {}
    found = compared(group.rows, name)
    return {
        row["run_id"]: comparison for row, comparison in zip(group.rows, found, strict=True) if comparison
    }


def forest(group: Group, found: dict[str, Comparison], name: str | None) -> Intervals | None:
    """The differences in mean NLL that `comparisons` has found to the runs called `name`."""
    items = tuple(
        _item(entry, found[entry.row["run_id"]]) for entry in group.entries if entry.row["run_id"] in found
    )
    if not items:
        return None
    windows = next(iter(found.values())).windows
    note = (
        f"Below 0 is better than {name} (at the same bits and group size, where it has them). Paired bootstrap over {windows} windows,"
        " 95 %; hollow: the interval decides nothing."
    )
    return Intervals(
        "forest", f"NLL against {name}", "difference in mean NLL, nats per token", items, 0.0, note=note
    )


def _item(entry: Entry, comparison: Comparison) -> Item:
    label = f"{comparison.delta_nll:+.3f} [{comparison.low:+.3f}, {comparison.high:+.3f}]"
    decided = comparison.verdict in (Verdict.better, Verdict.worse)
    return Item(
        entry.name, entry.style, comparison.delta_nll, comparison.low, comparison.high, label, decided
    )


def latency(group: Group) -> list[Intervals]:
    """Speed of prefill and decode over that of the dense model, with the extremes of the rounds."""
    return [figure for phase in ("prefill", "decode") if (figure := _latency(group, phase))]


def _latency(group: Group, phase: str) -> Intervals | None:
    items = tuple(item for entry in group.entries if (item := _ratio(entry, phase)))
    if not items:
        return None
    note = "Above 1 is faster than the dense model, timed in turn. The line spans the slowest and the fastest round."
    return Intervals(
        f"latency_{phase}",
        f"Speed of {phase}",
        "tokens per second, compressed over dense",
        items,
        1.0,
        log=True,
        note=note,
    )


def _ratio(entry: Entry, phase: str) -> Item | None:
    speed = get_path(entry.row["metrics"], f"latency.{phase}") or {}
    if "ratio" not in speed:
        return None
    seconds = get_path(entry.row.get("samples", {}), f"latency.seconds.{phase}") or {
        "dense": [],
        "compressed": [],
    }
    rounds = [
        dense / compressed for dense, compressed in zip(seconds["dense"], seconds["compressed"], strict=True)
    ]
    low, high = min(rounds, default=speed["ratio"]), max(rounds, default=speed["ratio"])
    own = speed["tokens_per_second"]
    label = (
        f"{speed['ratio']:.2f}×, {own:,.0f} tok/s"
        if own >= 100
        else f"{speed['ratio']:.2f}×, {own:.3g} tok/s"
    )
    return Item(entry.name, entry.style, speed["ratio"], low, high, label, not low <= 1 <= high)
