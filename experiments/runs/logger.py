"""Where a finished run is reported to, besides its row."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.results.record import Row


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
