"""Curves over trainings: checkpoints of models trained here, and losses of methods that train."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from experiments.report.comparable import Group
from experiments.report.figure import Figure
from experiments.report.figures.curves import curves
from experiments.report.figures.series import NO_GROUP, Series, facts
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


def over_steps(rows: Sequence[Row]) -> list[Figure]:
    """Return a figure of each quantity that was measured at several steps of a training."""
    found = trajectories(rows)
    return [figure for each in QUANTITIES if (figure := _figure(found, *each))]


def _figure(found: Sequence[Trajectory], key: str, path: str, title: str, axis: str) -> Figure | None:
    series = Series(tuple(each.name for each in found), (NO_GROUP,), title="training")
    measured = [(each, _curve(each, path)) for each in found]
    kept = [(each, curve) for each, curve in measured if len(curve) > 1]
    rows = tuple(row for number, (each, curve) in enumerate(kept) for row in _steps(number, each, curve))
    return curves(f"over_steps_{key}", title, "training step", axis, rows, series, points=True)


def _curve(trajectory: Trajectory, path: str) -> dict[int, float]:
    return {step: value for step, value in trajectory.curve(path).items() if isfinite(value)}


def _steps(number: int, trajectory: Trajectory, curve: dict[int, float]) -> list[dict[str, Any]]:
    """Return a row for each checkpoint, which is a run."""
    name = trajectory.name
    same = {"name": name, "method": name, "group": NO_GROUP, "bits": "", "hollow": False, "curve": number}
    runs = {step: trajectory.rows[step]["run_id"] for step in curve}
    return [same | {"run": runs[step], "x": [step], "y": [value]} for step, value in curve.items()]


def losses(group: Group, series: Series) -> Figure | None:
    """Return the training loss of the runs that trained, over steps; None where none did."""
    found = [(each, get_path(each.row.get("samples", {}), "training.loss") or []) for each in group.entries]
    trained = [(entry, thinned(loss)) for entry, loss in found if len(loss) > 1]
    rows = tuple(
        facts(entry, series) | {"curve": number, "x": list(loss), "y": list(loss.values())}
        for number, (entry, loss) in enumerate(trained)
    )
    note = "Losses of different methods are of different kinds; only one method's runs compare."
    return curves("losses", "Training loss", "step", "loss", rows, series, note=note)


def thinned(loss: Sequence[float]) -> dict[int, float]:
    """Return at most `MOST_POINTS` means of neighbouring steps, by the last step of each."""
    size = -(-len(loss) // MOST_POINTS)
    parts = [loss[start : start + size] for start in range(0, len(loss), size)]
    return {size * number + len(part): fmean(part) for number, part in enumerate(parts)}
