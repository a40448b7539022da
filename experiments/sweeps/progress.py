"""Progress of a sweep: a line for each finished run, and on a terminal a bar that says which one goes on.

    3/12 sinq 4-bit g32  ppl 117.4  12 s  (about 2 min left)

Runs are finished when their outcome is a file in the sweep's folder, so this works with every launcher, in a
pipe and in the log of a cluster's job as well. The time left is extrapolated from the time passed. Runs count
by the plan's estimates where it has one, else alike.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from experiments.common.console import console
from experiments.results import record
from experiments.results.paths import get_path
from experiments.results.record import Row
from experiments.sweeps.plan import Item, duration, say
from experiments.sweeps.summary import FAILED, NOT_APPLICABLE, Outcome
from sinq.common.reading import read_json, typed

OUTCOME = "outcome.json"
BUSY = "busy"
POLL = 0.2
"""Seconds between looks for finished runs of other processes."""


def result(row: Row) -> str:
    """Return the most important numbers of a row as text: `ppl 117.4  piqa 62.1%`."""
    perplexity = get_path(row["metrics"], "perplexity.value")
    tasks = get_path(row["metrics"], "zero_shot.tasks") or {}
    parts = [] if perplexity is None else [f"ppl {perplexity:.5g}"]
    parts += [f"{name} {numbers['acc']:.1%}" for name, numbers in tasks.items() if "acc" in numbers]
    return "  ".join(parts)


def outcome_of(file: Path) -> Outcome | None:
    """Return the outcome that a job wrote; None without one, and a failure where it cannot be read."""
    try:
        outcome = typed(read_json(file), dict, "an outcome")
        typed(outcome.get("seconds", 0.0), float, "seconds")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return {FAILED: f"{file} is no outcome of a run: {error}"}
    kinds = [kind for kind in ("run_id", BUSY, FAILED, NOT_APPLICABLE) if isinstance(outcome.get(kind), str)]
    if len(kinds) != 1:
        return {FAILED: f"{file} is no outcome of a run: it has no run and no reason"}
    return {name: outcome[name] for name in (kinds[0], "seconds") if name in outcome}


@dataclass
class Reasons:
    """Reasons for which runs failed, each told once."""

    first: dict[str, str] = field(default_factory=dict)

    def once(self, reason: str, name: str) -> str:
        """Return the reason, or the name under which it was told before."""
        known = self.first.setdefault(reason, name)
        return reason if known == name else f"the same as {known}"


class Watch:
    """Progress of the jobs that a sweep launches."""

    def __init__(self, items: Sequence[Item], folder: Path, results_dir: Path) -> None:
        self._folder, self._results_dir = folder, results_dir
        self._names = _names(items)
        known = [item.estimate.seconds for item in items if item.estimate]
        usual = median(known) if known else 1.0
        self._weights = [item.estimate.seconds if item.estimate else usual for item in items]
        self._waiting = {k: k for k in range(len(items))}
        self._done: list[int] = []
        self._reasons, self._lock, self._begun = Reasons(), threading.Lock(), time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("", total=len(items), left="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar while the block runs, if this is a terminal and there are runs."""
        if not self._names:
            yield
            return
        with self._bar:
            yield

    def expect(self, job: int, again: int) -> None:
        """Wait for a job that does again what another one, of that number, put off."""
        self._waiting[job] = self._waiting.pop(again)

    def begin(self, job: int) -> None:
        """Say in the bar which run is under way."""
        text = f"run {len(self._done) + 1}/{len(self._names)} {self._names[self._waiting[job]]}"
        self._bar.update(self._task, description=text)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look for finished runs while the block waits for other processes."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(POLL):
                self.look()

        self._bar.update(self._task, description=f"{len(self._names)} runs")
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def look(self) -> None:
        """Report the jobs that have ended since the last look."""
        with self._lock:
            for job in list(self._waiting):
                if outcome := outcome_of(self._folder / str(job) / OUTCOME):
                    self._report(job, outcome)

    def lost(self, job: int, outcome: Outcome) -> None:
        """Report a job that left no outcome."""
        with self._lock:
            self._report(job, outcome)

    def _report(self, job: int, outcome: Outcome) -> None:
        if BUSY in outcome:
            return  # it comes again
        item = self._waiting.pop(job)
        self._done.append(item)
        left = self._left()
        self._bar.update(self._task, completed=len(self._done), left=left)
        count, name = f"{len(self._done)}/{len(self._names)}", self._names[item]
        parts = [f"{count} {name}", *self._end(outcome, count)]
        say("  ".join(part for part in parts if part) + (f"  ({left})" if left else ""))

    def _end(self, outcome: Outcome, count: str) -> list[str]:
        """Return the result of a run or the reason why it has none, and its time."""
        took = duration(outcome["seconds"]) if "seconds" in outcome else ""
        for kind in (NOT_APPLICABLE, FAILED):
            if kind in outcome:
                return [f"{kind}: {self._reasons.once(outcome[kind], count)}", took]
        row = record.find(self._results_dir, outcome["run_id"])
        return [result(row) if row else "", took]

    def _left(self) -> str:
        """Return the time left as text; empty after the last run."""
        done = sum(self._weights[item] for item in self._done)
        ahead = sum(self._weights) - done
        if len(self._done) == len(self._names):
            return ""
        return f"about {duration((time.monotonic() - self._begun) * ahead / max(done, 1e-3))} left"


def _names(items: Sequence[Item]) -> list[str]:
    """Return the names of runs, with their options where several have the same name."""
    names = [item.name or item.options for item in items]
    return [
        name if names.count(name) == 1 or not item.options else f"{name} ({item.options})"
        for name, item in zip(names, items, strict=True)
    ]
