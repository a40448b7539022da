"""Duration of compression: statistics and quantizing apart, loading and compiling left out."""

from typing import Any

from experiments.report.comparable import Entry, Group
from experiments.report.figure import Figure
from experiments.report.figures import strips
from experiments.report.figures.series import Series, facts


def time(group: Group, series: Series) -> Figure | None:
    """Return bars of the seconds that every compressed run took; None where there is none."""
    compressed = [entry for entry in group.entries if "compression" in entry.row["metrics"]]
    rows = tuple(facts(entry, series) | _seconds(entry) for entry in compressed)
    note = "Pale: statistics; then quantizing. Without loading the model and compiling kernels."
    parts = ("statistics", "quantizing")
    return strips.bars("time", "Time to compress", "seconds", rows, series, parts=parts, note=note)


def _seconds(entry: Entry) -> dict[str, Any]:
    compression = entry.row["metrics"]["compression"]
    before, after = compression["seconds_statistics"], compression["seconds_quantize"]
    label = f"{before + after:.3g} s" + (f" ({before:.3g} statistics)" if before else "")
    return {"statistics": before, "quantizing": after, "label": label}
