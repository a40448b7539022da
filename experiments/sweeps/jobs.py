"""Jobs: `run.py` with one composed configuration, and sweeps of many.

A sweep prints its plan (`plan.py`) and launches the runs to do. Every job writes its outcome to the sweep's
folder, so neither the progress (`progress.py`) nor the summary depends on the launcher or its processes. A
failed job does not stop the others; the summary lists it, and the exit code is 1. Options that exclude each
other (`sinq.NotApplicable`) are listed too, but are no failure: grids of options often contain some.
"""

import json
import os
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.common.console import bar, set_up
from experiments.common.errors import USER_ERRORS, explain, not_applicable, run_cli
from experiments.common.files import atomic_write, sweep_abandoned
from experiments.config.build import build, register, results_folder
from experiments.config.instantiation import instantiated
from experiments.results import record
from experiments.results.former_rows import without_paths
from experiments.results.record import Row
from experiments.runs.claims import BusyError
from experiments.runs.pipeline import Execution, execute
from experiments.runs.search import METRICS, Search, TrialError
from experiments.sweeps import plan
from experiments.sweeps.launching import Launch, Overrides, in_this_process, launched
from experiments.sweeps.plan import Item, State, say
from experiments.sweeps.progress import BUSY, OUTCOME, Reasons, result
from experiments.sweeps.summary import FAILED, NOT_APPLICABLE, PLANNED, Outcome, show, summarize
from sinq import NotApplicable
from sinq.checkpoint.stream import require_workers
from sinq.common.progress import silent

LARGEST = 5000
"""Most runs of a sweep; planning takes hundredths of a second for each."""
SHARED = ("model", "device", "text", "calibration", "evaluation")
"""Options that are costly to change between runs, the costliest first."""


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
    chosen = instantiated(config, "sweep")
    if config.plan and isinstance(chosen, Search):
        say(f"plan: a search of {chosen.total} trials among {chosen.combinations} combinations")
        return
    if config.plan:
        plan.show(plan.make([_with_hydra(config)], results_dir))
        return
    if isinstance(chosen, Search):
        _search(chosen, config, results_dir)
        return
    row = _run(config, wait=True)
    show([row], results_dir)
    say(f"row: {record.row_path(results_dir, row['run_id'])}")


def _search(search: Search, config: DictConfig, results_dir: Path) -> None:
    missing = [evaluation for evaluation, _ in METRICS if evaluation not in config.evaluation]
    if missing:
        raise ValueError(
            f"sweep=search needs evaluation.{missing[0]};"
            " choose an evaluation that has it, such as evaluation=quality"
        )
    task = HydraConfig.get().overrides.task
    fixed = [override for override in task if not override.lstrip("+").startswith("sweep")]
    reasons = Reasons()

    def attempt(options: Overrides, number: int) -> Row | None:
        trial = compose("config", [*fixed, *options], return_hydra_config=True)
        count = f"trial {number}/{search.total}"
        try:
            row = _execute(trial, wait=True)
        except Exception as error:  # a trial must not stop the others
            kind = NOT_APPLICABLE if not_applicable(error) else FAILED
            say(f"{count} {', '.join(options)}  {kind}: {reasons.once(explain(error), count)}")
            if kind == FAILED:
                raise TrialError(explain(error)) from error
            return None
        size = row["metrics"]["size"]["model_nbytes"] / 1e6
        say(f"{count} {', '.join(options)}  {result(row)}  {size:.1f} MB  {row['run_id']}")
        return row

    front = search.front(attempt, fixed, results_dir)
    if search.total < search.trials:
        say(f"all {search.total} combinations of sweep.space were tried; sweep.trials={search.trials}")
    rows = [row for name in front if (row := record.find(results_dir, name))]
    if not rows:
        raise ValueError(
            f"none of {search.total} trials ended within the budget; the reasons are above,"
            " or raise sweep.max_bytes, sweep.max_perplexity or sweep.trials"
        )
    show(rows, results_dir, f"Pareto front of {search.total} trials, bytes and perplexity")


def _with_hydra(config: DictConfig) -> DictConfig:
    """Return the configuration with Hydra's section, which a job receives separately."""
    return OmegaConf.merge({"hydra": HydraConfig.get()}, config)  # type: ignore[return-value]


def _run(config: DictConfig, wait: bool) -> Row:
    return _execute(_with_hydra(config), wait)


def _execute(config: DictConfig, wait: bool) -> Row:
    """Run a configuration that has Hydra's section, and return the row."""
    run = build(config)
    results_dir = results_folder(config)
    progress = bar if in_this_process(config) else silent  # workers share a terminal with their parent
    setting = Execution(
        results_dir,
        instantiated(config, "logger"),
        config.force,
        progress,
        config.save,
        wait,
        _workers(config),
    )
    options = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain = OmegaConf.to_container(options, resolve=False, enum_to_str=True)  # the environment is private
    return execute(run, setting, without_paths(plain))


def _workers(config: DictConfig) -> int | str:
    """Return the option `stream_workers`, checked."""
    workers: int | str = config.stream_workers
    require_workers(workers, "stream_workers")
    if workers != 1 and not config.stream:
        raise NotApplicable(f"stream_workers={workers} is not possible without streaming; add stream=true")
    return workers


def _job_of_sweep(config: DictConfig, folder: Path) -> None:
    outcome: Outcome = {}
    begun = time.monotonic()
    try:
        outcome = {"run_id": _run(config, config.wait)["run_id"]}
    except BusyError as error:
        outcome = {BUSY: str(error)}
    except Exception as error:  # noqa: BLE001 - a job must not stop the others; the summary reports it
        outcome = {NOT_APPLICABLE if not_applicable(error) else FAILED: explain(error)}
        if not isinstance(error, USER_ERRORS):
            traceback.print_exc()
    outcome["seconds"] = time.monotonic() - begun
    with record.writing(folder), atomic_write(folder / OUTCOME) as file:
        file.write(json.dumps(outcome).encode())


def ordered(overrides: list[Override]) -> list[Override]:
    """Return options sorted so that costly ones change least often: the last option varies fastest."""

    def rank(override: Override) -> int:
        option = override.get_key_element().lstrip("+~").split(".")[0].split("@")[0]
        return SHARED.index(option) if option in SHARED else len(SHARED)

    return sorted(overrides, key=rank)


def run(jobs: Sequence[Overrides], configs: Iterable[DictConfig], config: DictConfig, launch: Launch) -> None:
    """Plan, launch and summarize a sweep.

    Args:
        jobs: the overrides of each run.
        configs: the configuration of each run; composed while it is planned.
        config: the configuration of the sweep.
        launch: runs jobs with the given overrides, and returns when they are done.

    Raises:
        ValueError: a search was asked for.
        SystemExit: a run failed; the status is 1.
    """
    set_up()
    results_dir, folder = results_folder(config), Path(config.hydra.sweep.dir)
    options = plan.distinguishing(jobs)
    items = plan.show(plan.make(map(_no_search, configs), results_dir, options), options)
    if config.plan:
        return
    with record.writing(results_dir):
        folder.mkdir(parents=True, exist_ok=True)
        sweep_abandoned(folder.parent, f"*/*/.{OUTCOME}.*")  # of sweeps that were killed
        with atomic_write(folder / "multirun.yaml") as file:
            file.write(OmegaConf.to_yaml(config).encode())
    certain = plan.stays_here(config)
    chosen = [k for k, item in enumerate(items) if item.state is State.to_do or not certain]
    made = dict(zip(chosen, launched([items[k] for k in chosen], config, launch), strict=True))
    outcomes = [made.get(k) or _known(item) for k, item in enumerate(items)]
    named = [outcome | {"options": item.options} for outcome, item in zip(outcomes, items, strict=True)]
    summarize(named, results_dir, config.table)


def _no_search(config: DictConfig) -> DictConfig:
    """Refuse a sweep of searches."""
    if isinstance(instantiated(config, "sweep"), Search):
        raise ValueError("sweep=search chooses its runs itself, one after another: leave out -m")
    return config


def _known(item: Item) -> Outcome:
    """Return the outcome of a run that was not launched."""
    if item.state in (State.refused, State.not_applicable):
        return {PLANNED: item.state.value}
    return {"run_id": item.run_id} if item.run_id else {}
