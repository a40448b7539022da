"""Summary of a run or a sweep: tables of rows and dense baselines, then runs without a row, with reasons."""

import json
import sys
from collections.abc import Iterable
from datetime import datetime
from math import floor
from pathlib import Path
from time import time

from psutil import Process

from experiments.common.console import console
from experiments.common.errors import USER_ERRORS, explain
from experiments.results import overview, record
from experiments.results.names import titles
from experiments.results.notes import once
from experiments.results.record import Row
from experiments.sweeps.plan import duration
from experiments.tables.show import show as print_table

NOT_APPLICABLE, FAILED = "not applicable", "failed"

Outcome = dict[str, str]
"""Outcome of a job: a `run_id`, or a reason under one of the names above; and the job's `options`."""


def summarize(outcomes: list[Outcome], results_dir: Path, table_name: str | None) -> None:
    """Print a sweep's runs, those not applicable and those that failed; then the experiment's table.

    Raises:
        SystemExit: a run failed, or the table could not be printed; the status is 1.
    """
    names = dict.fromkeys(o["run_id"] for o in outcomes if "run_id" in o)
    rows = [
        row for name in names if (row := record.find(results_dir, name)) and row["status"] == record.FINISHED
    ]
    show(rows, results_dir, f"{len(rows)} runs in {record.runs_dir(results_dir)}")
    list_misses(outcomes)
    console.print(pace(record.read(results_dir)[0], Process().create_time(), time()), style="dim")
    shown = table_name is None or _show_table(table_name, results_dir)
    if not shown or any(FAILED in outcome for outcome in outcomes):
        sys.exit(1)


def pace(rows: Iterable[Row], begun: float, now: float) -> str:
    """Return, as text, the lifetime of this process and the cost of the rows finished meanwhile.

    The cost is compressing and measuring. The rest of the lifetime is overhead: starting, composing, loading
    the model, recording. The ratio is below 1 where several runs went at once.

    Args:
        begun: start of the process, in seconds since 1970. Rows record the second in which they were
            finished.
        now: the present, in seconds since 1970.
    """
    finished = [row for row in rows if row["status"] == record.FINISHED and "cost" in row]
    ends = [datetime.fromisoformat(row["provenance"]["finished_at"]).timestamp() for row in finished]
    costs = [row["cost"]["seconds"] for row, end in zip(finished, ends, strict=True) if end >= floor(begun)]
    cost, lifetime = sum(costs), now - begun
    ratio = f", {lifetime / cost:.3f} × that" if cost else ""
    return (
        f"{len(costs)} runs and baselines measured, {duration(cost)} of compressing and measuring;"
        f" {duration(lifetime)} in all{ratio}"
    )


def _show_table(name: str, results_dir: Path) -> bool:
    """Print an experiment's table; return False where that fails."""
    try:
        print_table(name, results_dir)
    except USER_ERRORS as error:
        console.print(f"table {name}: {explain(error)}", markup=False, soft_wrap=True)
        return False
    return True


def list_misses(outcomes: list[Outcome]) -> None:
    """Print each reason once, after the runs that have it: those not applicable, then those that failed."""
    for kind in (NOT_APPLICABLE, FAILED):
        reasons = [(outcome["options"], outcome[kind]) for outcome in outcomes if kind in outcome]
        for line in once(reasons):
            console.print(f"{kind}: {line}", soft_wrap=True)


def show(rows: list[Row], results_dir: Path, title: str = "") -> None:
    """Print tables of rows, one per model, text, evaluation and device, each with the dense baselines."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        key = json.dumps(
            [row["identity"][part] for part in ("model", "text", "evaluation", "device")], sort_keys=True
        )
        members = groups.setdefault(key, {})
        dense = record.find(results_dir, row["dense_run_id"]) if row["dense_run_id"] else None
        members |= {found["run_id"]: found for found in (dense, row) if found}
    tables = [list(members.values()) for members in groups.values()]
    for heading, shown in zip(titles([each[-1] for each in tables]), tables, strict=True):
        overview.show(shown, results_dir, f"{heading}: {title}" if title else heading)
