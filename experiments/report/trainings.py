"""Curves over trainings: checkpoints of models trained here, and losses of methods that train."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean

from experiments.report.comparable import Group
from experiments.report.drawn import Chart, Line, Point
from experiments.results.paths import get_path
from experiments.results.record import Row
from experiments.results.trajectories import Trajectory, trajectories

QUANTITIES: tuple[tuple[str, str, str, str], ...] = (
    ("nll", "perplexity.nll", "Loss over training", "NLL of the evaluation text, nats"),
    ("entropy", "attention_entropy.mean", "Entropy of attention over training", "mean over layers, nats"),
    ("rank", "stable_rank.mean", "Stable rank over training", "mean over matrices"),
)
"""Key, path in the metrics, title, axis."""
MOST_POINTS = 40
"""Points of a loss curve; each is the mean of as many steps as are needed."""


def over_steps(rows: Sequence[Row]) -> list[Chart]:
    """Return a chart of each quantity that was measured at several steps of a training."""
    found = trajectories(rows)
    return [chart for each in QUANTITIES if (chart := _chart(found, *each))]


def _chart(found: Sequence[Trajectory], key: str, path: str, title: str, axis: str) -> Chart | None:
    lines = []
    for style, each in enumerate(found):
        curve = {step: value for step, value in each.curve(path).items() if isfinite(value)}
        if len(curve) > 1:
            lines.append(Line(each.name, style, tuple(_points(each.name, curve))))
    return (
        Chart(f"over_steps_{key}", title, "training step", axis, tuple(lines), log=False) if lines else None
    )


def losses(group: Group) -> Chart | None:
    """Return the training loss of the runs that trained, over steps; None where none did."""
    lines = []
    for entry in group.entries:
        loss = get_path(entry.row.get("samples", {}), "training.loss") or []
        if len(loss) > 1:
            lines.append(Line(entry.name, entry.style, tuple(_points(entry.name, thinned(loss)))))
    if not lines:
        return None
    note = "Losses of different methods are of different kinds; only one method's runs compare."
    return Chart("losses", "Training loss", "step", "loss", tuple(lines), note=note, log=False)


def thinned(loss: Sequence[float]) -> dict[int, float]:
    """Return at most `MOST_POINTS` means of neighbouring steps, by the last step of each."""
    size = -(-len(loss) // MOST_POINTS)
    parts = [loss[start : start + size] for start in range(0, len(loss), size)]
    return {size * number + len(part): fmean(part) for number, part in enumerate(parts)}


def _points(name: str, curve: dict[int, float]) -> list[Point]:
    return [Point(step, value, f"{name}\nstep {step:,}\n{value:.5g}") for step, value in curve.items()]
