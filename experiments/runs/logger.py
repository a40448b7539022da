"""Loggers that show a finished run elsewhere, besides its row."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.results.record import Row

if TYPE_CHECKING:
    import pandas as pd


class Logger(ABC):
    """A receiver of finished rows, besides the results folder."""

    @abstractmethod
    def log(self, row: Row, layers: "pd.DataFrame", results_dir: Path) -> None:
        """Show one finished row and the table of its layers."""


@dataclass(frozen=True)
class NoLogger(Logger):
    """No logger: rows are only in the results folder."""

    def log(self, row: Row, layers: "pd.DataFrame", results_dir: Path) -> None:
        pass
