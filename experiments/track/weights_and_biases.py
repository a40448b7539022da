"""Logger that copies finished rows to Weights & Biases. The row stays the record of a run.

Nothing that W&B does costs a run: what it raises is a line in the log, a server that does not answer is
waited for once and for seconds, and nobody is asked for a key.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.common.extras import advice
from experiments.common.files import atomic_write
from experiments.common.network import unreachable
from experiments.results import flat
from experiments.results.record import Row
from experiments.runs.logger import Logger
from experiments.track import content
from sinq.common.options import check

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
FOLDER = "wandb"
"""Folder of W&B's files in a results folder; W&B itself chooses the name."""
INIT_SECONDS, FINISH_SECONDS = 10.0, 30.0
"""Longest waits for a server that answered before: to take a run, and to have all of it."""


class NotLoggedError(Exception):
    """W&B was not asked; the message says why."""


@dataclass(frozen=True)
class WandB(Logger):
    """Options of logging to Weights & Biases.

    A log has the configuration, flat and nested; the metrics in groups (`perplexity/value`, and each
    zero-shot task's accuracy as `accuracy/<task>`), and the headline numbers under short names
    (`perplexity`, `kl`); tables of runs, layers and windows; the page's figures of this run, as pictures and
    as Vega that can be pointed at; and as an artifact the files of the row. Method, bits, group size, model
    and text are tags, so that runs can be filtered without opening one.

    Offline runs need no account and no network. They are kept in `<results_dir>/wandb`, one folder per run.
    Later, any machine that has the rows can send them by `wandb login` and `python -m experiments.track`.

    Raises:
        ValueError: the mode is invalid, or a package is not installed.
    """

    project: str = "sinq"
    mode: str = "offline"
    entity: str | None = None
    group: str | None = None
    """Group of the run; `conf/logger/wandb.yaml` makes each sweep a group."""

    def __post_init__(self) -> None:
        check(self, "logger")
        if self.mode not in ("offline", "online"):
            raise ValueError(
                f"logger.mode={self.mode} is not possible; it must be offline or online (or logger=none)"
            )
        for package in ("wandb", "altair"):  # checked now, not at the end of a long run
            if find_spec(package) is None:
                raise ValueError(f"logger=wandb: {advice(package)}, or choose logger=none")

    def log(self, row: Row, layers: "pd.DataFrame", results_dir: Path) -> None:
        """Log a finished row and its table of layers. Whatever W&B raises is only reported."""
        try:
            self.send(row, layers, results_dir)
        except Exception as error:  # noqa: BLE001 - W&B raises anything; the run has its row
            if not isinstance(error, NotLoggedError):
                unreachable.cache_clear()  # the server answered before
            log.warning(
                "%s is not logged to W&B (%s); its row is safe, and python -m experiments.track --results %s"
                " sends it later",
                *(f"{row['run_id']} {row['name']}", one_line(error), results_dir),
            )

    def send(self, row: Row, layers: "pd.DataFrame", results_dir: Path) -> None:
        """Log a finished row and its table of layers; remember in the results folder what was sent.

        Raises:
            NotLoggedError: the server does not answer, or there is no key.
            Exception: anything else that W&B raises.
        """
        if self.mode == "online":
            _require_server()
        (results_dir / FOLDER).mkdir(parents=True, exist_ok=True)
        with _data_in(results_dir / FOLDER):
            self._send(row, layers, results_dir)
        if self.mode == "online":
            with atomic_write(_sent(results_dir, row["run_id"])) as file:
                file.write(row["provenance"]["finished_at"].encode())

    def _send(self, row: Row, layers: "pd.DataFrame", results_dir: Path) -> None:
        import wandb

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            mode=self.mode,  # type: ignore[arg-type]
            dir=results_dir,
            id=row["run_id"],
            resume="allow",
            name=row["name"],
            job_type=flat.facts(row)["method"],
            tags=content.tags(row),
            config=content.configuration(row),
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
                # The row says where it was made, without folders and names of people.
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        metrics = content.grouped(row)
        tables = {name: wandb.Table(dataframe=table) for name, table in content.tables(row, layers).items()}
        run.log(metrics | tables | content.figures(row, layers))
        run.summary.update(metrics | content.headline(row))
        run.log_artifact(content.artifact(row, results_dir))
        run.finish()


@contextmanager
def _data_in(folder: Path) -> Iterator[None]:
    """Have W&B keep the copies of its tables in a folder, else in the user's home, unless one is set.

    An offline run needs them when it is sent by `wandb sync`.
    """
    variable = "WANDB_DATA_DIR"
    if variable in os.environ:
        yield
        return
    os.environ[variable] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[variable]


def is_sent(row: Row, results_dir: Path) -> bool:
    """Return whether a row was sent as it is now; one that was measured again was not."""
    file = _sent(results_dir, row["run_id"])
    return file.is_file() and file.read_bytes() == row["provenance"]["finished_at"].encode()


def _sent(results_dir: Path, run_id: str) -> Path:
    return results_dir / FOLDER / "sent" / run_id


def _require_server() -> None:
    """Raise `NotLoggedError` if W&B's server does not answer within seconds, or there is no key for it."""
    import wandb

    if reason := unreachable(_base_url()):
        raise NotLoggedError(f"no network: {reason}")
    if not wandb.login(prompt=False):
        raise NotLoggedError("no key: run wandb login, or set WANDB_API_KEY")


def _base_url() -> str:
    import wandb

    return str(wandb.setup().settings.base_url)


def one_line(error: Exception) -> str:
    """Return the kind and the first line of an error."""
    if isinstance(error, NotLoggedError):
        return str(error)
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
