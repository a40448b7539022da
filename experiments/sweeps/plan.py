"""The plan of a sweep: the state of each run before any is started, and estimates of cost from similar runs.

Runs are similar when they have the same model, class of method, text, evaluations and device. The estimate is
the median of their seconds and the largest of their peaks; without a similar run it is unknown, and the plan
says so. Loading the model and measuring a dense baseline are not included.

Launchers that send runs to other machines (Slurm, Ray) may find another device there. Then neither a run's id
nor its validity is certain here: every run is sent, and finds its row, or refuses, there.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig
from rich import box
from rich.table import Table

from experiments.common.console import console
from experiments.common.errors import USER_ERRORS, explain, not_applicable
from experiments.config.build import build
from experiments.results import record
from experiments.results.paths import as_json
from experiments.results.record import Row
from experiments.runs.identity import identity, run_id
from experiments.runs.pipeline import label

HERE = ("basic", "joblib", "submitit_local", "ray_local")
"""Launchers whose runs stay on this machine."""
ALIKE = ("model", "text", "evaluation", "device")


class State(enum.Enum):
    """State of a run in the plan."""

    to_do = "to do"
    found = "found"
    repeated = "the same as one above"
    not_applicable = "not applicable"
    refused = "refused"


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run."""

    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Item:
    """A combination of a sweep's options."""

    overrides: tuple[str, ...]
    state: State
    name: str = ""
    run_id: str | None = None
    reason: str = ""
    estimate: Estimate | None = None
    options: str = ""
    """Overrides that not all runs share, for display."""


def make(configs: Iterable[DictConfig], results_dir: Path) -> list[Item]:
    """Return the plan of composed configurations, in the same order."""
    costs = _Costs(record.read(results_dir)[0])
    items: list[Item] = []
    for config in configs:
        items.append(_item(config, results_dir, costs, {item.run_id for item in items} - {None}))
    common = set[str]().union(*(item.overrides for item in items)) if len(items) > 1 else set()
    common = common.intersection(*(item.overrides for item in items))
    return [replace(item, options=", ".join(o for o in item.overrides if o not in common)) for item in items]


def _item(config: DictConfig, results_dir: Path, costs: "_Costs", above: set[str | None]) -> Item:
    overrides = tuple(config.hydra.overrides.task)
    try:
        run = build(config)
        parts = identity(run)
        row = record.find(results_dir, run_id(parts))
    except USER_ERRORS as error:
        return Item(
            overrides, State.not_applicable if not_applicable(error) else State.refused, reason=explain(error)
        )
    name, estimate = run_id(parts), costs.of(parts)
    if name in above:
        return Item(overrides, State.repeated, label(run), name)
    if row and row["status"] == record.FINISHED and not config.force:
        return Item(overrides, State.found, label(run), name)
    return Item(overrides, State.to_do, label(run), name, estimate=estimate)


def stays_here(config: DictConfig) -> bool:
    """Return True where the launcher runs on this machine, so that the plan is certain."""
    return config.hydra.runtime.choices["hydra/launcher"] in HERE


class _Costs:
    """Costs of finished runs."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._of: dict[str, list[Estimate]] = {}
        for row in rows:
            if row["status"] == record.FINISHED and "cost" in row:
                estimate = Estimate(row["cost"]["seconds"], row["cost"]["peak_memory_bytes"])
                self._of.setdefault(_kind(row["identity"]), []).append(estimate)

    def of(self, parts: dict[str, Any]) -> Estimate | None:
        """Return the estimate for a run with this identity; None without similar runs."""
        known = self._of.get(_kind(parts))
        if not known:
            return None
        return Estimate(median(e.seconds for e in known), max(e.peak_memory_bytes for e in known))


def _kind(parts: dict[str, Any]) -> str:
    return as_json([parts["method"]["name"], *(parts[name] for name in ALIKE)])


def show(items: Sequence[Item]) -> None:
    """Print a plan: a line per run, then the totals."""
    view = Table(
        title="plan", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for heading in ("run", "options", "state"):
        view.add_column(heading)
    for heading in ("time", "peak"):
        view.add_column(heading, justify="right")
    for item in items:
        view.add_row(item.name or "–", item.options, item.state.value, *_cells(item))
    console.print(view)
    console.print(summary(items), markup=False, soft_wrap=True)


def _cells(item: Item) -> tuple[str, str]:
    if item.state is not State.to_do:
        return "", ""
    if item.estimate is None:
        return "unknown", "unknown"
    return duration(item.estimate.seconds), memory(item.estimate.peak_memory_bytes)


def summary(items: Sequence[Item]) -> str:
    """Return counts by state, then time and memory of the runs to do."""
    counts = ", ".join(
        f"{count} {state.value}" for state in State if (count := sum(item.state is state for item in items))
    )
    waiting = [item for item in items if item.state is State.to_do]
    known = [item.estimate for item in waiting if item.estimate]
    if not waiting:
        return f"plan: {counts or 'no runs'}"
    if not known:
        return f"plan: {counts}; time and memory unknown: no earlier run is like these"
    unknown = f" and {len(waiting) - len(known)} of unknown cost" if len(known) < len(waiting) else ""
    peak = memory(max(e.peak_memory_bytes for e in known))
    total = duration(sum(e.seconds for e in known))
    return f"plan: {counts}; about {total} one after another{unknown}; peak {peak} each"


def duration(seconds: float) -> str:
    """Return seconds as text in s, min or h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def memory(count: int) -> str:
    """Return bytes as text in MB or GB."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
