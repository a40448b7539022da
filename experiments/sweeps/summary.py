"""Summary of a run or a sweep: tables of rows and dense baselines, then runs without a row, with reasons."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from math import floor
from pathlib import Path
from time import time
from typing import Any

from psutil import Process

from experiments.common.errors import USER_ERRORS, explain
from experiments.results import overview, record
from experiments.results.names import titles
from experiments.results.record import Row
from experiments.sweeps.plan import State, duration, say, say_reasons
from experiments.tables.show import show as print_table

NOT_APPLICABLE, FAILED = "not applicable", "failed"
PLANNED = "planned"

Outcome = dict[str, Any]
"""Outcome of a job: a `run_id`, or a reason under one of the names above; its `seconds` and `options`.

A run that the plan refused has its state there under `planned`.
"""


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
    say(pace(record.read(results_dir)[0], Process().create_time(), time()), style="dim")
    shown = table_name is None or _show_table(table_name, results_dir)
    failed = any(FAILED in outcome or outcome.get(PLANNED) == State.refused.value for outcome in outcomes)
    if not shown or failed:
        sys.exit(1)


def pace(rows: Iterable[Row], begun: float, now: float) -> str:
    """Return, as text, how many runs were finished in the lifetime of this process, and where the time went.

    Work is compressing and measuring. The rest is starting, composing, loading the model and recording. Work
    is longer than the lifetime where several runs went at once.

    Args:
        begun: start of the process, in seconds since 1970. Rows record the second in which they were
            finished.
        now: the present, in seconds since 1970.
    """
    rows = [row for row in rows if row["status"] == record.FINISHED and "cost" in row]
    ends = [datetime.fromisoformat(row["provenance"]["finished_at"]).timestamp() for row in rows]
    made = [row for row, end in zip(rows, ends, strict=True) if end >= floor(begun)]
    dense = sum(row["dense_run_id"] is None for row in made)
    runs = f"{len(made) - dense} runs" + f" and {dense} of the dense model" * bool(dense)
    work, lifetime = sum(row["cost"]["seconds"] for row in made), now - begun
    rest = lifetime - work
    apart = f", {duration(rest)} of start-up and logging" if rest > 0 else ", several at once"
    return f"{runs} in {duration(lifetime)} ({duration(work)} of work{apart})"


def _show_table(name: str, results_dir: Path) -> bool:
    """Print an experiment's table; return False where that fails."""
    try:
        print_table(name, results_dir)
    except USER_ERRORS as error:
        say(f"table {name}: {explain(error)}")
        return False
    return True


def list_misses(outcomes: list[Outcome]) -> None:
    """Print each reason why runs were not applicable, then why others failed, with these runs."""
    for kind in (NOT_APPLICABLE, FAILED):
        say_reasons(kind, [(outcome["options"], outcome[kind]) for outcome in outcomes if kind in outcome])
    planned = Counter(outcome[PLANNED] for outcome in outcomes if PLANNED in outcome)
    if planned:
        counts = " and ".join(f"{count} {state}" for state, count in planned.items())
        say(f"{counts}: the plan above has the reasons")


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
