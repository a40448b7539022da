"""Accuracies on zero-shot tasks, with lm-eval's standard error, one figure for each task."""

from typing import Any

from experiments.report.comparable import Entry, Group
from experiments.report.figure import Figure
from experiments.report.figures import strips
from experiments.report.figures.series import Series, facts
from experiments.results import flat
from experiments.results.paths import get_path


def accuracies(group: Group, series: Series) -> list[Figure]:
    """Return a figure for each task that some run was asked, and nothing where no task was."""
    tasks: dict[str, str] = {}
    for row in group.rows:
        tasks = flat.tasks(row) | tasks
    return [
        figure
        for number, (task, metric) in enumerate(tasks.items(), 1)
        if (figure := _figure(group, series, task, metric, number))
    ]


def _figure(group: Group, series: Series, task: str, metric: str, number: int) -> Figure | None:
    asked = [(entry, each) for entry in group.entries if (each := _accuracy(entry, task, metric))]
    if not asked:
        return None
    dense = next((each["value"] for entry, each in asked if entry is group.dense), None)
    note = "The line spans one standard error to each side, as lm-eval gives it."
    note += " Dashed: the dense model." if dense is not None else " Dashed: the first run."
    rows = tuple(facts(entry, series) | each for entry, each in asked)
    return strips.intervals(
        f"zero_shot_{number}", f"Zero-shot: {task}", metric, rows, series,
        neutral=asked[0][1]["value"] if dense is None else dense, number=".4f", note=note,
    )  # fmt: skip


def _accuracy(entry: Entry, task: str, metric: str) -> dict[str, Any] | None:
    numbers = get_path(entry.row["metrics"], "zero_shot.tasks")
    value = (numbers or {}).get(task, {}).get(metric)
    if not isinstance(value, float):
        return None
    name, _, filtered = metric.partition("@")
    spread = numbers[task].get(f"{name}_stderr{'@' + filtered if filtered else ''}", 0.0)
    error = spread if isinstance(spread, float) else 0.0
    return {
        "value": value,
        "low": value - error if error > 0 else None,
        "high": value + error if error > 0 else None,
        "decided": True,
        "label": f"{value:.3f} ± {error:.3f}, {numbers[task].get('items', '?')} items",
    }
