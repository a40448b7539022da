"""Accuracies on zero-shot tasks, with lm-eval's standard error, one figure for each task."""

from experiments.report.comparable import Entry, Group
from experiments.report.drawn import Intervals, Item
from experiments.results import flat
from experiments.results.paths import get_path


def accuracies(group: Group) -> list[Intervals]:
    """Return a figure for each task that some run was asked, and nothing where no task was."""
    tasks: dict[str, str] = {}
    for row in group.rows:
        tasks = flat.tasks(row) | tasks
    return [
        figure
        for number, (task, metric) in enumerate(tasks.items(), 1)
        if (figure := _figure(group, task, metric, number))
    ]


def _figure(group: Group, task: str, metric: str, number: int) -> Intervals | None:
    items = tuple(item for entry in group.entries if (item := _item(entry, task, metric)))
    dense = next((item.value for item in items if group.dense and item.name == group.dense.name), None)
    if not items:
        return None
    note = "The line spans one standard error to each side, as lm-eval gives it."
    note += " Dashed: the dense model." if dense is not None else ""
    middle = items[0].value if dense is None else dense
    return Intervals(f"zero_shot_{number}", f"Zero-shot: {task}", metric, items, middle, note=note)


def _item(entry: Entry, task: str, metric: str) -> Item | None:
    numbers = get_path(entry.row["metrics"], "zero_shot.tasks")
    value = (numbers or {}).get(task, {}).get(metric)
    if not isinstance(value, float):
        return None
    name, _, filtered = metric.partition("@")
    spread = numbers[task].get(f"{name}_stderr{'@' + filtered if filtered else ''}", 0.0)
    error = spread if isinstance(spread, float) else 0.0
    label = f"{value:.3f} ± {error:.3f}, {numbers[task].get('items', '?')} items"
    interval = (value - error, value + error) if error > 0 else None
    return Item(entry.name, entry.style, value, interval, label, True)
