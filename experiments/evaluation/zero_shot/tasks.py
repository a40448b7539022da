"""Zero-shot tasks: found by name, and identified by their requests.

Names are lm-eval's (tasks, groups, tags), and those of the YAML files in `local_tasks/`, whose data are in
the data folder. The index of lm-eval's 14,000 names takes half a minute to read, so it is read only for a
name that is not in `local_tasks/`.

The requests of a task depend on data, prompt, few-shot examples and lm-eval's version. `fingerprints` hashes
them; the hash is part of a run's identity, so that a row is found again, and its answers compared, only where
the questions are the same. Some tasks shuffle with the global generators, so these start from the same seed
each time, and are restored.
"""

import difflib
import hashlib
import io
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.network import prepare_hub
from experiments.common.paths import data_dir

FOLDER = Path(__file__).parent / "local_tasks"
LOCAL = tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))
"""Names of the tasks on local files."""
SEED = 1234
"""Seed of the few-shot examples and the global generators; lm-eval's default."""

Loaded = dict[str, Any]
"""Result of lm-eval's `TaskManager.load`: "tasks" by name, "groups", and "group_map"."""


def load(names: tuple[str, ...], shots: int | None = None) -> dict[str, Loaded]:
    """Return the tasks of every name; a group or tag has several.

    Args:
        names: names of tasks, groups or tags.
        shots: solved examples before each question; None for the task's own number, which is mostly 0.

    Raises:
        ValueError: a task does not exist, its data cannot be loaded, or it cannot be asked here.
    """
    return _load(names, shots, data_dir())


@lru_cache(maxsize=4)
def _load(names: tuple[str, ...], shots: int | None, folder: Path | None) -> dict[str, Loaded]:
    manager = _manager(all(name in LOCAL for name in names))
    for name in names:
        if name not in manager.task_index:
            raise ValueError(_unknown(name, manager.all_tasks))
    with reproducible():
        return {name: _load_one(manager, name, shots) for name in names}


@lru_cache(maxsize=2)
def _manager(only_local: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(FOLDER), include_defaults=not only_local)


def _unknown(name: str, known: list[str]) -> str:
    close = [match for match in difflib.get_close_matches(name, known, n=5) if match not in LOCAL]
    meant = f", of lm-eval perhaps {', '.join(close)}" if close else ""
    more = "or any that `lm-eval ls tasks` lists"
    known_here = f"known are, on local files, {', '.join(LOCAL)}"
    return f"evaluation.zero_shot.tasks={name}: there is no such task; {known_here}{meant}, {more}"


def _load_one(manager: Any, name: str, shots: int | None) -> Loaded:
    from datasets.exceptions import DatasetNotFoundError

    raised_by_loading = (OSError, ValueError, RuntimeError, ImportError, DatasetNotFoundError)
    if name in LOCAL:
        loaded: Loaded = manager.load([name])
    else:
        prepare_hub()
        try:
            loaded = manager.load([name])
        except raised_by_loading as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            instead = f"Without a network, use {' or '.join(LOCAL)}"
            raise ValueError(
                f"evaluation.zero_shot.tasks={name}: its data cannot be had ({reason}). {instead}"
            ) from error
    for task in loaded["tasks"].values():
        _prepare(task, shots)
    return loaded


def _prepare(task: Any, shots: int | None) -> None:
    """Set a task's number of examples and its seed; raise `ValueError` if it cannot be asked so."""
    for flag, reason in (
        ("UNSAFE_CODE", "runs code the model writes"),
        ("MULTIMODAL", "shows pictures or sounds"),
    ):
        if getattr(task, flag, False):
            raise ValueError(
                f"evaluation.zero_shot.tasks={task.task_name} {reason}; such tasks cannot be asked here"
            )
    configured = task.get_config("num_fewshot")
    # 0 in a task's file says that the task cannot have examples.
    if configured is None or (shots is not None and configured != 0):
        task.set_config("num_fewshot", shots or 0)
    if shots and task.get_config("num_fewshot") != shots:
        raise ValueError(
            f"evaluation.zero_shot.shots={shots}: {task.task_name} takes no examples; it must be 0 or null"
        )
    task.set_fewshot_seed(SEED)


def fingerprints(names: tuple[str, ...], limit: int | None, shots: int | None) -> dict[str, str]:
    """Return a hash of each task's requests, by the task's name. The requests stay in `task.instances`."""
    found = {}
    with quiet(), reproducible():
        for loaded in load(names, shots).values():
            for name, task in loaded["tasks"].items():
                task.build_all_requests(limit=limit)
                found[name] = _fingerprint(task)
    return found


def _fingerprint(task: Any) -> str:
    asked = [[instance.request_type, instance.arguments, instance.doc] for instance in task.instances]
    content = {"asked": asked, "version": str(task.VERSION), "metrics": task.dump_config().get("metric_list")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:16]


@contextmanager
def reproducible() -> Iterator[None]:
    """Start the global generators of `random` and numpy from `SEED`, and restore them after the block."""
    plain, numpy_state = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpy_state)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the lines and bars that lm-eval prints during a block."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
