"""Rows: each run is one JSON file, `runs/<run_id>.json`; every table and plot is a view of these files.

A row is written in one step when its run is over, so an interrupted run leaves nothing. A failed run leaves a
row that says why, and is tried again. The table of its layers lies beside the row as `<run_id>.layers.csv`,
written first.

During a run its process holds a claim on its id (`experiments/runs/claims.py`). Another process that wants
the same run finds it finished later.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.files import atomic_write
from experiments.results.schema import SCHEMA, NewerRowError, Row, RowError, checked

if TYPE_CHECKING:
    import pandas as pd

FINISHED, FAILED = "finished", "failed"


def runs_dir(results_dir: Path) -> Path:
    """Return the folder of all rows."""
    return results_dir / "runs"


def row_path(results_dir: Path, run_id: str) -> Path:
    """Return the path of a run's row, whether or not it exists."""
    return runs_dir(results_dir) / f"{run_id}.json"


def layers_path(results_dir: Path, run_id: str) -> Path:
    """Return the path of the table of a run's layers; a dense run has no such file."""
    return runs_dir(results_dir) / f"{run_id}.layers.csv"


@contextmanager
def writing(results_dir: Path) -> Iterator[None]:
    """Name the results folder in errors of the block that writes to it.

    Raises:
        ValueError: the folder cannot be written; the message says why.
    """
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}"
        raise ValueError(
            f"results_dir={results_dir} cannot be written: {reason}. Rows that are there are as they were"
        ) from error


def find(results_dir: Path, run_id: str) -> Row | None:
    """Return the row of a run, finished or failed; None if there is no readable row.

    Raises:
        NewerRowError: newer code wrote the row; it is not read, and must not be replaced.
    """
    path = row_path(results_dir, run_id)
    try:
        return _read(path)
    except NewerRowError as error:
        raise NewerRowError(f"{path}: {error}") from error
    except (FileNotFoundError, RowError):
        return None


def write(results_dir: Path, row: Row, layers: "pd.DataFrame | None" = None) -> Path:
    """Write the table of a run's layers, then its row; return the path of the row.

    Raises:
        ValueError: the folder cannot be written, or its disk is full; the old files stay.
    """
    path = row_path(results_dir, row["run_id"])
    with writing(results_dir):
        if layers is not None and not layers.empty:
            with atomic_write(layers_path(results_dir, row["run_id"])) as file:
                layers.to_csv(file, index=False)
        with atomic_write(path) as file:
            file.write(json.dumps({"schema": SCHEMA, **row}, indent=1).encode())
    return path


def read(results_dir: str | Path) -> tuple[list[Row], dict[str, str]]:
    """Return all rows of a results folder in the order of their ids, and the unreadable files.

    The second result maps the name of each file that is no row to the reason.
    """
    rows, unreadable = [], {}
    for path in sorted(runs_dir(Path(results_dir)).glob("*.json")):
        try:
            rows.append(_read(path))
        except (RowError, OSError) as error:
            unreadable[path.name] = str(error)
    return rows, unreadable


def _read(path: Path) -> Row:
    """Return the row in a file, checked and migrated to the current version."""
    try:
        row = checked(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RowError(f"it is cut off or no JSON: {error}") from error
    if row["run_id"] != path.stem:
        raise RowError(f"it is the row of {row['run_id']} under another name")
    return row


def load(results_dir: str | Path) -> "pd.DataFrame":
    """Return all rows of a results folder as a table, names joined by dots (`metrics.perplexity.value`).

    Raw samples and the resolved configuration stay in the files. Files that cannot be read are listed in
    `.attrs["unreadable"]`.
    """
    rows, unreadable = read(results_dir)
    table = tabulate(rows)
    table.attrs["unreadable"] = list(unreadable)
    return table


def tabulate(rows: list[Row]) -> "pd.DataFrame":
    """Return rows as the lines of a table, in their order, without raw samples and configuration."""
    import pandas as pd  # takes as long to import as all else here

    return pd.json_normalize(
        [{key: row[key] for key in row if key not in ("samples", "config")} for row in rows]
    )


def settings(row: Row) -> dict[str, Any]:
    """Return every setting that decides a row's numbers: its identity, and the options at their defaults."""
    return _merged(row.get("options") or {}, row.get("identity") or {})


def _merged(options: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts merged at every level; `identity` wins."""
    both = {
        key: _merged(options[key], identity[key])
        for key in options.keys() & identity.keys()
        if isinstance(options[key], dict)
    }
    return options | identity | both


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted names: {"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def as_json(value: Any) -> str:
    """Return a value as JSON text with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True)


def get_path(nested: dict[str, Any], path: str) -> Any:
    """Return the value at a dotted path, or None."""
    value: Any = nested
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
