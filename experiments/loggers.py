"""Tracking: a logger mirrors finished rows elsewhere. The row is the truth; losing a log loses nothing."""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.record import Row, flatten

log = logging.getLogger(__name__)


class Logger(ABC):
    """Where finished rows are shown besides the results folder."""

    @abstractmethod
    def log(self, row: Row, layers: pd.DataFrame, results_dir: Path) -> None:
        """Mirror one finished row."""


@dataclass(frozen=True)
class NoLogger(Logger):
    """Nowhere."""

    def log(self, row: Row, layers: pd.DataFrame, results_dir: Path) -> None:
        pass


@dataclass(frozen=True)
class WandB(Logger):
    """Weights & Biases: configuration, metrics under the row's own names, and the table of layers.

    Offline runs need no account and no network; they are kept in `<results_dir>/wandb` and sent by `wandb sync <folder>`.
    """

    project: str = "sinq"
    mode: str = "offline"
    entity: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online"):
            raise ValueError(f"logger.mode={self.mode} is not possible; it must be offline or online (or logger=none)")

    def log(self, row: Row, layers: pd.DataFrame, results_dir: Path) -> None:
        import wandb

        try:
            self._log(row, layers, results_dir)
        except wandb.errors.Error as error:
            log.info("W&B did not take the run (%s); its row is safe in the results folder", error)

    def _log(self, row: Row, layers: pd.DataFrame, results_dir: Path) -> None:
        import wandb

        results_dir.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            mode=self.mode,  # type: ignore[arg-type]
            dir=results_dir,
            id=row["run_id"],
            resume="allow",
            name=row["name"],
            config={part: row[part] for part in ("run_id", "choices", "identity", "protocol", "provenance")},
            settings=wandb.Settings(silent=True, console="off"),
        )
        tables = {} if layers.empty else {"layers": wandb.Table(dataframe=layers)}
        run.log(flatten({"metrics": row["metrics"]}) | tables)
        run.finish()
