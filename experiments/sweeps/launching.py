"""Launching: the runs of a sweep by a launcher, their outcomes from its folder.

Several processes may work on one sweep at once. A run that another process works on is deferred to a second
round, in which this process waits for it. By then the run is finished, or its owner is gone and it is run
here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.sweeps.plan import Item, say
from experiments.sweeps.progress import BUSY, OUTCOME, Watch, outcome_of
from experiments.sweeps.summary import FAILED, Outcome

WAIT = "wait=true"
"""Override added in the second round to runs that another process worked on in the first."""

Overrides = Sequence[str]
Launch = Callable[[Sequence[Overrides]], None]


def launched(items: Sequence[Item], config: DictConfig, launch: Launch) -> list[Outcome]:
    """Launch runs, then once more those that other processes worked on; return the outcomes."""
    folder, jobs = Path(config.hydra.sweep.dir), [item.overrides for item in items]
    watch = Watch(items, folder, Path(config.results_dir).expanduser())
    with watch.shown():
        outcomes = _outcomes(jobs, launch, folder, 0, watch, in_this_process(config))
        busy = [k for k, outcome in enumerate(outcomes) if BUSY in outcome]
        for position, k in enumerate(busy):
            watch.expect(len(jobs) + position, again=k)
        again = [(*jobs[k], WAIT) for k in busy]
        second = _outcomes(again, launch, folder, len(jobs), watch, in_this_process(config))
    for k, outcome in zip(busy, second, strict=True):
        outcomes[k] = outcome
    return outcomes


def in_this_process(config: DictConfig) -> bool:
    """Return whether runs are made by this process, one after another."""
    return config.hydra.mode != RunMode.MULTIRUN or config.hydra.runtime.choices["hydra/launcher"] == "basic"


def _outcomes(
    jobs: Sequence[Overrides], launch: Launch, folder: Path, start: int, watch: Watch, one_by_one: bool
) -> list[Outcome]:
    """Launch jobs and return the outcomes they wrote. A job without one was killed.

    Args:
        start: number of the first job, which names its folder.
        one_by_one: launch each when the one before has ended.
    """
    errors: list[Exception] = []
    if one_by_one:
        for k, job in enumerate(jobs):
            watch.begin(start + k)
            errors += _attempt(launch, [job])
            watch.look()
    elif jobs:
        with watch.looking():
            errors += _attempt(launch, jobs)
        watch.look()
    lost = "its process ended without a word; out of memory is the likeliest reason"
    if errors:
        reason = (str(errors[0]).strip().splitlines() or [""])[0]
        lost = f"it left no word; the launcher says: {type(errors[0]).__name__}: {reason}"
    outcomes: list[Outcome] = []
    for k in range(start, start + len(jobs)):
        outcome = outcome_of(folder / str(k) / OUTCOME)
        outcomes.append(outcome or {FAILED: lost})
        if outcome is None:
            watch.lost(k, outcomes[-1])
    return outcomes


def _attempt(launch: Launch, jobs: Sequence[Overrides]) -> list[Exception]:
    """Launch jobs; print and return the error that the launcher raised, if it did."""
    try:
        launch(jobs)
    except Exception as error:  # noqa: BLE001 - launchers raise anything if a worker is killed; outcomes count
        say(f"{type(error).__name__}: {error}")
        return [error]
    return []
