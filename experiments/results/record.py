"""Rows: each run is one JSON file, `runs/<run_id>.json`; every table and plot is a view of these files.

A row is written in one step when its run is over, so an interrupted run leaves nothing. A failed run leaves a
row that says why, and is tried again. The table of its layers lies beside the row as `<run_id>.layers.csv`,
written first. Both are compared with the row's seal when they are read (`seal.py`).

During a run its process holds a claim on its id (`experiments/runs/claims.py`). Another process that wants
the same run finds it finished later.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.common.files import atomic_write
from experiments.results.schema import SCHEMA, NewerRowError, Row, RowError, checked
from experiments.results.seal import fits, sealed, unsealed

if TYPE_CHECKING:
    import pandas as pd

FINISHED, FAILED = "finished", "failed"
NUMBERS = ("relative_error", "imbalance_before", "imbalance_after", "bits_per_weight")
"""Columns of numbers in a table of layers."""


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
        RowError: something else has the name of the row's file, such as a folder.
    """
    path = row_path(results_dir, run_id)
    try:
        return _read(path)
    except NewerRowError as error:
        raise NewerRowError(f"{path}: {error}") from error
    except (FileNotFoundError, NotADirectoryError, RowError):
        return None
    except OSError as error:
        raise RowError(f"{path} cannot be read: {error.strerror}; move it away") from error


def write(results_dir: Path, row: Row, layers: "pd.DataFrame | None" = None) -> Path:
    """Write the table of a run's layers, then its row; return the path of the row.

    Raises:
        ValueError: the folder cannot be written, or its disk is full; the old files stay.
    """
    path = row_path(results_dir, row["run_id"])
    table = None if layers is None or layers.empty else layers.to_csv(index=False).encode()
    with writing(results_dir):
        if table is not None:
            with atomic_write(layers_path(results_dir, row["run_id"])) as file:
                file.write(table)
        with atomic_write(path) as file:
            file.write(sealed({"schema": SCHEMA, **row}, table))
    return path


def read(results_dir: str | Path) -> tuple[list[Row], dict[str, str]]:
    """Return all rows of a results folder in the order of their ids, and the unreadable files.

    The second result maps the name of each file that is no row to the reason.
    """
    rows, unreadable = [], {}
    for path in sorted(runs_dir(Path(results_dir)).glob("*.json")):
        try:
            rows.append(_read(path))
        except RowError as error:
            unreadable[path.name] = str(error)
        except OSError as error:
            unreadable[path.name] = error.strerror or str(error)
    return rows, unreadable


def _read(path: Path) -> Row:
    """Return the row in a file, checked and migrated to the current version."""
    content = path.read_bytes()
    try:
        row = unsealed(content, checked(json.loads(content)))
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, and endless numbers
        if isinstance(error, RowError):
            raise
        raise RowError(f"it is cut off or no JSON: {error}") from error
    if row["run_id"] != path.stem:
        raise RowError(f"it is the row of {row['run_id']} under another name")
    return row


def read_layers(results_dir: Path, run_id: str) -> "pd.DataFrame":
    """Return the table of a run's layers; empty for a run without one.

    Raises:
        RowError: the file is missing, damaged, or another run's; the message names it.
    """
    import pandas as pd  # takes as long to import as all else here

    path = layers_path(results_dir, run_id)
    try:
        content = path.read_bytes()
        table = pd.read_csv(BytesIO(content))
    except FileNotFoundError as error:
        if not fits(None, row_path(results_dir, run_id)):
            raise RowError(f"{path} is missing") from error
        return pd.DataFrame()
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise RowError(f"{path} is no table of layers: {str(error).splitlines()[0]}") from error
    if not fits(content, row_path(results_dir, run_id)):
        raise RowError(f"{path} is no table of layers of this run: it is not what was written")
    wrong = [name for name in NUMBERS if name in table and not pd.api.types.is_numeric_dtype(table[name])]
    if "name" not in table or table["name"].isna().any() or table["name"].duplicated().any():
        raise RowError(f"{path} is no table of layers: each line needs a name, unlike all others")
    if wrong:
        raise RowError(f"{path} is no table of layers: {', '.join(wrong)} must have numbers only")
    return table


def load(results_dir: str | Path) -> "pd.DataFrame":
    """Return all rows of a results folder as a table.

    First come flat columns: `run_id`, `name`, `status`, `method`, `bits`, `group_size`, `calibrated`,
    `model`, `text`, the main metrics (`perplexity`, `kl`, …) and the accuracy of each zero-shot task under
    the task's name. All other values follow, names joined by dots (`metrics.latency.decode.ratio`). Raw
    samples and the resolved configuration stay in the files. Files that cannot be read are listed in
    `.attrs["unreadable"]`.
    """
    from experiments.results.frame import tabulate

    rows, unreadable = read(results_dir)
    table = tabulate(rows)
    table.attrs["unreadable"] = list(unreadable)
    return table
