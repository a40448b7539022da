"""What a run or a sweep says when it is over: tables of rows beside their dense baselines, then what was not done, and why."""

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
from experiments.results import record
from experiments.results.overview import decisions, facts, table
from experiments.results.record import Row
from experiments.sweeps.plan import duration
from experiments.tables.show import show as print_table

NOT_APPLICABLE, FAILED = "not applicable", "failed"

Outcome = dict[str, str]
"""How a job ended: a `run_id`, or a reason under one of the names above; and the `options` it is known by."""


def summarize(outcomes: list[Outcome], results_dir: Path, table_name: str | None) -> None:
    """The table of a sweep's runs, found or new, what was not applicable, and what failed; then an experiment's own table."""
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
    """How long this process has lived, beside what compressing and measuring cost in the runs and baselines finished meanwhile.

    The rest is this program's own: starting, composing, loading the model, recording. Below 1 where several runs went at once.

    Args:
        begun, now: seconds since 1970. Rows know the second they were finished in.
    """
    finished = [row for row in rows if row["status"] == record.FINISHED and "cost" in row]
    made = [
        row
        for row in finished
        if datetime.fromisoformat(row["provenance"]["finished_at"]).timestamp() >= floor(begun)
    ]
    cost = sum(row["cost"]["seconds"] for row in made)
    ratio = f", {(now - begun) / cost:.3f} × that" if cost else ""
    return f"{len(made)} runs and baselines measured, {duration(cost)} of compressing and measuring; {duration(now - begun)} in all{ratio}"


def _show_table(name: str, results_dir: Path) -> bool:
    """Print an experiment's table; whether that was possible."""
    try:
        print_table(name, results_dir)
    except USER_ERRORS as error:
        console.print(f"table {name}: {explain(error)}", markup=False, soft_wrap=True)
        return False
    return True


def list_misses(outcomes: list[Outcome]) -> None:
    """A line for each run that was not applicable, then for each that failed, with the reason."""
    for kind in (NOT_APPLICABLE, FAILED):
        for outcome in outcomes:
            if kind in outcome:
                console.print(f"{kind}: {outcome['options']}: {outcome[kind]}", markup=False, soft_wrap=True)


def show(rows: list[Row], results_dir: Path, title: str) -> None:
    """Tables of rows, one per model, text and device, each with the dense baselines of its runs."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        key = json.dumps(
            [row["identity"][part] for part in ("model", "text", "evaluation", "device")], sort_keys=True
        )
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
