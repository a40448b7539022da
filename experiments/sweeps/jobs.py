"""Jobs: `run.py` with one composed configuration, and sweeps of many.

A sweep prints its plan (`plan.py`) and launches the runs to do. Every job writes its outcome to the sweep's
folder, so the summary does not depend on the launcher or its processes. A failed job does not stop the
others; the summary lists it, and the exit code is 1. Options that exclude each other (`sinq.NotApplicable`)
are listed too, but are no failure:
grids of options often contain some.

Several processes may work on one sweep at once. A run that another process works on is deferred to a second
round, in which this process waits for it. By then the run is finished, or its owner is gone and it is run
here.
"""

import json
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.common.console import bar, console, set_up
from experiments.common.errors import USER_ERRORS, explain, not_applicable, run_cli
from experiments.common.files import atomic_write
from experiments.config.build import build, choices, register, results_folder
from experiments.config.instantiation import instantiated
from experiments.results import record
from experiments.results.former_rows import without_paths
from experiments.results.record import Row
from experiments.runs.claims import BusyError
from experiments.runs.pipeline import Execution, execute
from experiments.runs.search import METRICS, Search
from experiments.sweeps import plan
from experiments.sweeps.plan import Item, State
from experiments.sweeps.summary import FAILED, NOT_APPLICABLE, Outcome, list_misses, show, summarize

OUTCOME = "outcome.json"
BUSY = "busy"
WAIT = "wait=true"
"""Override added in the second round to runs that another process worked on in the first."""
LARGEST = 5000
"""Most runs of a sweep; planning takes a tenth of a second for each."""
SHARED = ("model", "device", "text", "calibration", "evaluation")
"""Options that are costly to change between runs, the costliest first."""

Overrides = Sequence[str]
Launch = Callable[[Sequence[Overrides]], None]


def job(config: DictConfig) -> None:
    """Run one configuration. In a sweep, this may be a new process in which nothing is set up yet."""
    register()
    set_up()
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        # Paths are relative to the folder the sweep was started in; workers of a cluster start elsewhere.
        os.chdir(hydra.runtime.cwd)
        _job_of_sweep(config, Path(hydra.sweep.dir) / str(hydra.job.num))
        return
    run_cli(lambda: _single(config))


def _single(config: DictConfig) -> None:
    results_dir = results_folder(config)
    if config.table is not None:
        raise ValueError(
            f"table={config.table} is filled by a sweep; add experiment=paper, or -m and options"
        )
    if config.plan:
        plan.show(plan.make([_with_hydra(config)], results_dir))
        return
    chosen = instantiated(config, "sweep")
    if isinstance(chosen, Search):
        _search(chosen, config, results_dir)
        return
    row, names = _run(config, wait=True), choices(_with_hydra(config))
    show([row], results_dir, f"{names['model']} on {names['text']}")
    console.print(f"row: {record.row_path(results_dir, row['run_id'])}", soft_wrap=True)


def _search(search: Search, config: DictConfig, results_dir: Path) -> None:
    missing = [evaluation for evaluation, _ in METRICS if evaluation not in config.evaluation]
    if missing:
        raise ValueError(
            f"sweep=search needs evaluation.{missing[0]};"
            " choose an evaluation that has it, such as evaluation=quality"
        )
    task = HydraConfig.get().overrides.task
    fixed = [override for override in task if not override.lstrip("+").startswith("sweep")]

    def attempt(options: Overrides) -> Row | None:
        trial = compose("config", [*fixed, *options], return_hydra_config=True)
        try:
            row = _execute(trial, wait=True)
        except Exception as error:  # noqa: BLE001 - a trial must not stop the others; None tells Optuna
            console.print(f"{', '.join(options)}: {explain(error)}", markup=False, soft_wrap=True)
            return None
        console.print(f"{row['run_id']}  {row['name']}")
        return row

    front = search.front(attempt, fixed, results_dir)
    rows = [row for name in front if (row := record.find(results_dir, name))]
    if not rows:
        raise ValueError(
            f"none of {search.trials} trials is within the budget;"
            " raise sweep.max_bytes, sweep.max_perplexity or sweep.trials"
        )
    show(rows, results_dir, f"Pareto front of {search.trials} trials, bytes and perplexity")


def _with_hydra(config: DictConfig) -> DictConfig:
    """Return the configuration with Hydra's section, which a job receives separately."""
    return OmegaConf.merge({"hydra": HydraConfig.get()}, config)  # type: ignore[return-value]


def _run(config: DictConfig, wait: bool) -> Row:
    return _execute(_with_hydra(config), wait)


def _execute(config: DictConfig, wait: bool) -> Row:
    """Run a configuration that has Hydra's section, and return the row."""
    run = build(config)
    results_dir = results_folder(config)
    setting = Execution(results_dir, instantiated(config, "logger"), config.force, bar, wait)
    options = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain = OmegaConf.to_container(options, resolve=True, enum_to_str=True)
    return execute(run, setting, without_paths(plain))


def _job_of_sweep(config: DictConfig, folder: Path) -> None:
    outcome: Outcome = {}
    try:
        row = _run(config, config.wait)
        outcome = {"run_id": row["run_id"]}
        console.print(f"{row['run_id']}  {row['name']}")
    except BusyError as error:
        outcome = {BUSY: str(error)}
    except Exception as error:  # noqa: BLE001 - a job must not stop the others; the summary reports it
        outcome = {NOT_APPLICABLE if not_applicable(error) else FAILED: explain(error)}
        if not isinstance(error, USER_ERRORS):
            traceback.print_exc()
    with record.writing(folder), atomic_write(folder / OUTCOME) as file:
        file.write(json.dumps(outcome).encode())


def ordered(overrides: list[Override]) -> list[Override]:
    """Return options sorted so that costly ones change least often: the last option varies fastest."""

    def rank(override: Override) -> int:
        option = override.get_key_element().lstrip("+~").split(".")[0].split("@")[0]
        return SHARED.index(option) if option in SHARED else len(SHARED)

    return sorted(overrides, key=rank)


def run(configs: Sequence[DictConfig], config: DictConfig, launch: Launch) -> None:
    """Plan, launch and summarize a sweep.

    Args:
        configs: the configuration of each run.
        config: the configuration of the sweep.
        launch: runs jobs with the given overrides, and returns when they are done.

    Raises:
        SystemExit: a run failed; the status is 1.
    """
    results_dir, folder = results_folder(config), Path(config.hydra.sweep.dir)
    items = plan.make(configs, results_dir)
    plan.show(items)
    if config.plan:
        list_misses([_known(item) | {"options": item.options} for item in items])
        return
    with record.writing(results_dir):
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "multirun.yaml")
    certain = plan.stays_here(config)
    first = [item.overrides for item in items if item.state is State.to_do or not certain]
    launched = _launched(first, launch, folder, 0)
    busy = [k for k, outcome in enumerate(launched) if BUSY in outcome]
    second = _launched([(*first[k], WAIT) for k in busy], launch, folder, len(first))
    for k, outcome in zip(busy, second, strict=True):
        launched[k] = outcome
    remaining = iter(launched)
    outcomes = [
        next(remaining) if item.state is State.to_do or not certain else _known(item) for item in items
    ]
    named = [outcome | {"options": item.options} for outcome, item in zip(outcomes, items, strict=True)]
    summarize(named, results_dir, config.table)


def _launched(jobs: Sequence[Overrides], launch: Launch, folder: Path, start: int) -> list[Outcome]:
    """Launch jobs and return the outcomes they wrote. A job without one was killed.

    Args:
        start: number of the first job, which names its folder.
    """
    lost = "its process ended without a word; out of memory is the likeliest reason"
    try:
        launch(jobs)
    except Exception as error:  # noqa: BLE001 - launchers raise anything if a worker is killed; outcomes count
        console.print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
        reason = (str(error).strip().splitlines() or [""])[0]
        lost = f"it left no word; the launcher says: {type(error).__name__}: {reason}"
    files = [folder / str(start + k) / OUTCOME for k in range(len(jobs))]
    return [json.loads(file.read_text()) if file.exists() else {FAILED: lost} for file in files]


def _known(item: Item) -> Outcome:
    """Return the outcome of a run that was not launched."""
    if item.state is State.refused:
        return {FAILED: item.reason}
    if item.state is State.not_applicable:
        return {NOT_APPLICABLE: item.reason}
    return {"run_id": item.run_id} if item.run_id else {}
