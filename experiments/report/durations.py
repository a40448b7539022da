"""Duration of compression: statistics and quantizing apart, loading and compiling left out."""

from experiments.report.comparable import Entry, Group
from experiments.report.drawn import Bar, Bars

PARTS = ("statistics", "quantizing")


def time(group: Group) -> Bars | None:
    """Return bars of the seconds that every compressed run took; None where there is none."""
    bars = tuple(_bar(entry) for entry in group.entries if "compression" in entry.row["metrics"])
    note = "Without loading the model and compiling kernels."
    return Bars("time", "Time to compress", "seconds", PARTS, bars, note) if bars else None


def _bar(entry: Entry) -> Bar:
    compression = entry.row["metrics"]["compression"]
    values = (compression["seconds_statistics"], compression["seconds_quantize"])
    label = f"{sum(values):.3g} s" + (f" ({values[0]:.3g} statistics)" if values[0] else "")
    return Bar(entry.name, entry.style, values, label)
