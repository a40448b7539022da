"""Jobs: what `run.py` does with one composed configuration, and what it says when a sweep of them is over.

Every job of a sweep leaves a note of how it ended in the sweep's folder, so that the summary holds whatever launcher ran the jobs, in
whatever processes. A job that fails does not stop the others; the summary lists it, and the exit code is 1. A combination of options
that makes no sense (`sinq.NotApplicable`) is listed too, but is no failure: a grid of options may well contain some.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments import record
from experiments.config import build
from experiments.console import bar, console, decisions, facts, table
from experiments.mistakes import MENDABLE, explain, guard, not_applicable
from experiments.pipeline import Setting, execute
from experiments.record import Row
from experiments.tables.show import show as print_table

OUTCOME = "outcome.json"
NOT_APPLICABLE, FAILED = "not applicable", "failed"


def job(config: DictConfig) -> None:
    """One run; in a sweep, one of many."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        _job_of_sweep(config, Path(hydra.sweep.dir) / str(hydra.job.num))
        return
    guard(lambda: _single(config))


def _single(config: DictConfig) -> None:
    results_dir = Path(config.results_dir).expanduser()
    row = _run(config)
    show([row], results_dir, f"{_choices()['model']} on {_choices()['text']}")
    console.print(f"row: {record.row_path(results_dir, row['run_id'])}", soft_wrap=True)


def _run(config: DictConfig) -> Row:
    run = build(config, _choices())
    setting = Setting(Path(config.results_dir).expanduser(), instantiate(config.logger), config.force, bar)
    return execute(run, setting, OmegaConf.to_container(config, resolve=True, enum_to_str=True))  # type: ignore[arg-type]


def _choices() -> dict[str, str]:
    """The names the user chose parts by."""
    return {group: str(name) for group, name in HydraConfig.get().runtime.choices.items() if name and not {"/", "@"} & {*group}}


def _job_of_sweep(config: DictConfig, folder: Path) -> None:
    try:
        row = _run(config)
        outcome = {"run_id": row["run_id"]}
        console.print(f"{row['run_id']}  {row['name']}")
    except Exception as error:  # noqa: BLE001 - a job must not stop the others; it is reported here and in the summary
        kind = NOT_APPLICABLE if not_applicable(error) else FAILED
        outcome = {kind: explain(error), "overrides": ", ".join(HydraConfig.get().overrides.task)}
        if not isinstance(error, MENDABLE):
            traceback.print_exc()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME).write_text(json.dumps(outcome))


class Summary(Callback):
    """Prints the table of a sweep's runs, found or new, what was not applicable, and what failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folders = sorted(Path(config.hydra.sweep.dir).glob(f"*/{OUTCOME}"), key=lambda path: int(path.parent.name))
        outcomes = [json.loads(path.read_text()) for path in folders]
        results_dir = Path(config.results_dir).expanduser()
        rows = [row for o in outcomes if "run_id" in o and (row := record.find(results_dir, o["run_id"]))]
        show(rows, results_dir, f"{len(rows)} runs in {results_dir / 'runs'}")
        for kind in (NOT_APPLICABLE, FAILED):
            for outcome in outcomes:
                if kind in outcome:
                    console.print(f"{kind}: {outcome['overrides']}: {outcome[kind]}", markup=False, soft_wrap=True)
        shown = config.experiment.table is None or _show_table(config.experiment.table, results_dir)
        if not shown or any(FAILED in outcome for outcome in outcomes):
            sys.exit(1)


def _show_table(name: str, results_dir: Path) -> bool:
    """Print an experiment's table; whether that was possible."""
    try:
        print_table(name, results_dir)
    except MENDABLE as error:
        console.print(f"table {name}: {explain(error)}", markup=False, soft_wrap=True)
        return False
    return True


def show(rows: list[Row], results_dir: Path, title: str) -> None:
    """Tables of rows, one per model, text and device, each with the dense baselines of its runs."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        key = json.dumps([row["identity"][part] for part in ("model", "text", "evaluation", "device")], sort_keys=True)
        members = groups.setdefault(key, {})
        dense = record.find(results_dir, row["dense_run_id"]) if row["dense_run_id"] else None
        members |= {found["run_id"]: found for found in (dense, row) if found}
    for members in groups.values():
        shown = list(members.values())
        console.print(table(shown, title))
        console.print(facts(shown[-1]), markup=False, style="dim")
        for row in shown:
            if decisions(row):
                console.print(f"{row['name']}: {decisions(row)}", markup=False)
