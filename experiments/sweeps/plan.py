"""The plan of a sweep: the state of each run before any is started, and estimates of cost from similar runs.

Runs are similar when they have the same model, class of method, text, evaluations and device. The estimate is
the median of their seconds and the largest of their peaks; without a similar run it is unknown, and the plan
says so. Loading the model and measuring a dense baseline are not included.

Runs are printed as they are planned; those that will not run follow, each reason once, with the number of its
runs.

Launchers that send runs to other machines (Slurm, Ray) may find another device there. Then neither a run's id
nor its validity is certain here: every run is sent, and finds its row, or refuses, there.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig

from experiments.common.console import console
from experiments.common.errors import USER_ERRORS, explain, not_applicable
from experiments.config.build import build
from experiments.results import record
from experiments.results.notes import once
from experiments.results.paths import as_json
from experiments.results.record import Row
from experiments.runs.identity import identity, run_id
from experiments.runs.kept import is_missing
from experiments.runs.pipeline import label

HERE = ("basic", "joblib", "submitit_local", "ray_local")
"""Launchers whose runs stay on this machine."""
ALIKE = ("model", "text", "evaluation", "device")


class State(enum.Enum):
    """State of a run in the plan."""

    to_do = "to do"
    found = "found"
    repeated = "duplicate"
    not_applicable = "not applicable"
    refused = "blocked"


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


def distinguishing(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return, for each job, the overrides that not all jobs share, as text."""
    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [", ".join(override for override in job if override not in common) for job in jobs]


def make(configs: Iterable[DictConfig], results_dir: Path, options: Sequence[str] = ("",)) -> Iterator[Item]:
    """Yield the plan of composed configurations, in the same order; say which rows cannot be read.

    Args:
        configs: composed with Hydra's section; each is taken when its item is wanted.
        options: text for each, as `distinguishing` gives it.
    """
    rows, unreadable = record.read(results_dir)
    for name, reason in unreadable.items():
        say(f"cannot be read: {record.runs_dir(results_dir) / name}: {reason}")
    costs = _Costs(rows)
    above: dict[str | None, str] = {}
    for config, text in zip(configs, options, strict=True):
        item = replace(_item(config, results_dir, costs, above), options=text)
        above.setdefault(item.run_id, text)
        yield item


def _item(config: DictConfig, results_dir: Path, costs: "_Costs", above: Mapping[str | None, str]) -> Item:
    overrides = tuple(config.hydra.overrides.task)
    try:
        run = build(config)
        if not run.model.is_made:  # a plan trains nothing
            return Item(overrides, State.to_do, label(run), reason="(its model is trained first)")
        parts = identity(run)
        name = run_id(parts)
        row = record.find(results_dir, name)
    except USER_ERRORS as error:
        state = State.not_applicable if not_applicable(error) else State.refused
        return Item(overrides, state, reason=explain(error))
    if name in above:
        return Item(overrides, State.repeated, label(run), name, f"of {above[name]}")
    repeats = config.force or (config.save and is_missing(results_dir, name))
    if row and row["status"] == record.FINISHED and not repeats:
        return Item(overrides, State.found, label(run), name)
    return Item(overrides, State.to_do, label(run), name, estimate=costs.of(parts))


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


def show(items: Iterable[Item], options: Sequence[str] = ("",)) -> list[Item]:
    """Print a plan while it is made: a line per run, reasons, the totals. Return its items.

    Args:
        options: texts of the items, as `make` has them.
    """
    width, shown = max(map(len, options), default=0), []
    for item in items:
        shown.append(item)
        if item.state not in (State.refused, State.not_applicable):
            say(f"{item.options:{width}}  {_state(item)}".strip())
    misses = {state: [item for item in shown if item.state is state] for state in State}
    for state in (State.not_applicable, State.refused):
        say_reasons(state.value, [(item.options, item.reason) for item in misses[state]])
    say(summary(shown))
    return shown


def _state(item: Item) -> str:
    """Return the state of a run that may run, with the estimate of its cost."""
    if item.reason:
        return f"{item.state.value} {item.reason}"
    estimate = ""
    if item.estimate:
        time, peak = duration(item.estimate.seconds), memory(item.estimate.peak_memory_bytes)
        estimate = f", about {time}, {peak}"
    return f"{item.state.value:5}  {item.name}{estimate}"


def say(text: str, style: str | None = None) -> None:
    """Print a line of text, however long, as it is."""
    console.print(text, soft_wrap=True, style=style)


def say_reasons(kind: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Print each reason once, with the runs that have it.

    Args:
        kind: word that the lines begin with.
        pairs: options of a run, and the reason.
    """
    for line in once(pairs):
        say(f"{kind}: {line}".replace(": :", ":"))


def summary(items: Sequence[Item]) -> str:
    """Return counts by state, then time and memory of the runs to do."""
    counts = ", ".join(
        f"{count} {state.value}{'s' if state is State.repeated and count > 1 else ''}"
        for state in State
        if (count := sum(item.state is state for item in items))
    )
    waiting = [item for item in items if item.state is State.to_do]
    known = [item.estimate for item in waiting if item.estimate]
    if not waiting:
        return f"plan: {counts or 'no runs'}"
    if not known:
        return f"plan: {counts}; no estimate of time and memory, since no earlier run is like these"
    unknown = f", no estimate for {len(waiting) - len(known)}" if len(known) < len(waiting) else ""
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
