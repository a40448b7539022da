"""Jobs: what `run.py` does with one composed configuration, and how a sweep of them goes.

A sweep prints its plan (`plan.py`) and launches what is to do. Every job leaves a note of how it ended in the sweep's folder, so that the
summary holds whatever launcher ran the jobs, in whatever processes. A job that fails does not stop the others; the summary lists it,
and the exit code is 1. A combination of options that makes no sense (`sinq.NotApplicable`) is listed too, but is no failure: a grid of
options may well contain some.

Several processes may go through one sweep at once. A run that another is at work on is left for a second round, in which it is waited for;
by then it is found finished, or its owner is gone and it is run here.
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
from experiments.config.build import build, choices, register
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
SHARED = ("model", "device", "text", "calibration", "evaluation")
"""Options whose values are dear to change between runs, the dearest first."""

Overrides = Sequence[str]
Launch = Callable[[Sequence[Overrides]], None]


def job(config: DictConfig) -> None:
    """One run; in a sweep, one of many, and perhaps in a process of its own, where nothing is set up yet."""
    register()
    set_up()
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        os.chdir(
            hydra.runtime.cwd
        )  # paths are meant from where the sweep was started; workers of a cluster begin elsewhere
        _job_of_sweep(config, Path(hydra.sweep.dir) / str(hydra.job.num))
        return
    run_cli(lambda: _single(config))


def _single(config: DictConfig) -> None:
    results_dir = Path(config.results_dir).expanduser()
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
            f"sweep=search needs evaluation.{missing[0]}; choose an evaluation that has it, such as evaluation=quality"
        )
    fixed = [o for o in HydraConfig.get().overrides.task if not o.lstrip("+").startswith("sweep")]

    def attempt(options: Overrides) -> Row | None:
        trial = compose("config", [*fixed, *options], return_hydra_config=True)
        try:
            row = _execute(trial, wait=True)
        except Exception as error:  # noqa: BLE001 - a trial must not stop the others; Optuna is told
            console.print(f"{', '.join(options)}: {explain(error)}", markup=False, soft_wrap=True)
            return None
        console.print(f"{row['run_id']}  {row['name']}")
        return row

    front = search.front(attempt, fixed, results_dir)
    rows = [row for name in front if (row := record.find(results_dir, name))]
    if not rows:
        raise ValueError(
            f"none of {search.trials} trials is within the budget; raise sweep.max_bytes, sweep.max_perplexity or sweep.trials"
        )
    show(rows, results_dir, f"Pareto front of {search.trials} trials, bytes and perplexity")


def _with_hydra(config: DictConfig) -> DictConfig:
    """The configuration with Hydra's own part, which a job is given apart."""
    return OmegaConf.merge({"hydra": HydraConfig.get()}, config)  # type: ignore[return-value]


def _run(config: DictConfig, wait: bool) -> Row:
    return _execute(_with_hydra(config), wait)


def _execute(config: DictConfig, wait: bool) -> Row:
    """The row of a configuration that has Hydra's part."""
    run = build(config)
    setting = Execution(
        Path(config.results_dir).expanduser(), instantiated(config, "logger"), config.force, bar, wait
    )
    options = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return execute(
        run, setting, without_paths(OmegaConf.to_container(options, resolve=True, enum_to_str=True))
    )


def _job_of_sweep(config: DictConfig, folder: Path) -> None:
    outcome: Outcome = {}
    try:
        row = _run(config, config.wait)
        outcome = {"run_id": row["run_id"]}
        console.print(f"{row['run_id']}  {row['name']}")
    except BusyError as error:
        outcome = {BUSY: str(error)}
    except Exception as error:  # noqa: BLE001 - a job must not stop the others; it is reported here and in the summary
        outcome = {NOT_APPLICABLE if not_applicable(error) else FAILED: explain(error)}
        if not isinstance(error, USER_ERRORS):
            traceback.print_exc()
    with record.writing(folder), atomic_write(folder / OUTCOME) as file:
        file.write(json.dumps(outcome).encode())


WAIT = "wait=true"
"""What is added to the options of a run that another process was at work on in the first round."""


def ordered(overrides: list[Override]) -> list[Override]:
    """Options in an order whose grid changes what is shared as seldom as it can; the last option varies fastest."""

    def rank(override: Override) -> int:
        option = override.get_key_element().lstrip("+~").split(".")[0].split("@")[0]
        return SHARED.index(option) if option in SHARED else len(SHARED)

    return sorted(overrides, key=rank)


def run(configs: Sequence[DictConfig], config: DictConfig, launch: Launch) -> None:
    """Plan, launch, summarize. Exits with 1 when a run failed.

    Args:
        configs: one of each run; `config`: the sweep's own.
        launch: runs jobs with these options, and returns when they are done.
    """
    results_dir, folder = Path(config.results_dir).expanduser(), Path(config.hydra.sweep.dir)
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
    again = _launched([(*first[k], WAIT) for k in busy], launch, folder, len(first))
    for k, outcome in zip(busy, again, strict=True):
        launched[k] = outcome
    remaining = iter(launched)
    outcomes = [
        next(remaining) if item.state is State.to_do or not certain else _known(item) for item in items
    ]
    named = [outcome | {"options": item.options} for outcome, item in zip(outcomes, items, strict=True)]
    summarize(named, results_dir, config.table)


def _launched(jobs: Sequence[Overrides], launch: Launch, folder: Path, start: int) -> list[Outcome]:
    """How jobs ended, by their notes; one that left none was killed."""
    lost = "its process ended without a word; out of memory is the likeliest reason"
    try:
        launch(jobs)
    except Exception as error:  # noqa: BLE001 - a launcher whose worker is killed raises whatever it likes; what is done is done
        console.print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
        lost = f"it left no word; the launcher says: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    notes = [folder / str(start + k) / OUTCOME for k in range(len(jobs))]
    return [json.loads(note.read_text()) if note.exists() else {FAILED: lost} for note in notes]


def _known(item: Item) -> Outcome:
    """The outcome of a run that was not launched."""
    if item.state is State.refused:
        return {FAILED: item.reason}
    if item.state is State.not_applicable:
        return {NOT_APPLICABLE: item.reason}
    return {"run_id": item.run_id} if item.run_id else {}
