"""Differences with intervals: mean NLL against a reference run, and latency ratios.

Differences in NLL are paired by window (`experiments/compare/paired.py`).
"""

from experiments.compare.counterpart import Counterparts, compared
from experiments.compare.paired import Comparison, Verdict
from experiments.report.comparable import Entry, Group
from experiments.report.figures import Intervals, Item
from experiments.results.paths import get_path

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
    windows = next(iter(found.values())).windows
    note = (
        f"Below 0 is better than {name} (at the same bits and group size, where it has them)."
        f" Paired bootstrap over {windows} windows, 95 %; hollow: the interval decides nothing."
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
    """Return plots of prefill and decode speed over the dense model's, with the extremes of the rounds."""
    return [figure for phase in ("prefill", "decode") if (figure := _latency(group, phase))]


def _latency(group: Group, phase: str) -> Intervals | None:
    items = tuple(item for entry in group.entries if (item := _ratio(entry, phase)))
    if not items:
        return None
    note = (
        "Above 1 is faster than the dense model, timed in turn."
        " The line spans the slowest and the fastest round."
    )
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
    samples = get_path(entry.row.get("samples", {}), f"latency.seconds.{phase}")
    seconds = samples or {"dense": [], "compressed": []}
    pairs = zip(seconds["dense"], seconds["compressed"], strict=True)
    rounds = [dense / compressed for dense, compressed in pairs]
    low, high = min(rounds, default=speed["ratio"]), max(rounds, default=speed["ratio"])
    tokens_per_second = speed["tokens_per_second"]
    rate = f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.3g}"
    label = f"{speed['ratio']:.2f}×, {rate} tok/s"
    return Item(entry.name, entry.style, speed["ratio"], low, high, label, not low <= 1 <= high)
