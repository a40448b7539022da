"""What a cell is: a figure, the paper's, the run it is from, and what may be said of it."""

import enum
from dataclasses import dataclass

from experiments.compare.paired import Comparison
from experiments.results.record import Row
from experiments.tables.spec import Table


class Judgement(enum.Enum):
    """What may be said of a cell."""

    reproduced = "inside the tolerance"
    differs = "outside the tolerance"
    untrusted = "the dense model does not agree with the paper's, or is not measured"
    refused = "not comparable with the paper's"
    unjudged = "nothing to judge by"
    not_applicable = "no such run, or none that has the figure"
    missing = "no run"


@dataclass(frozen=True)
class Cell:
    """One figure, in the unit of its column."""

    verdict: Judgement
    paper: float | None = None
    ours: float | None = None
    row: Row | None = None
    note: str = ""
    best: bool = False
    comparison: Comparison | None = None
    """With the row that the column sets it against; `ours` is then its difference in mean NLL, nats per token."""

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, where the two may be compared."""
        if self.ours is None or self.paper is None or self.verdict is Judgement.refused:
            return None
        return self.ours - self.paper


@dataclass(frozen=True)
class Filled:
    """A table with its cells."""

    table: Table
    cells: tuple[tuple[Cell, ...], ...]
    """Of each row, in the order of the columns."""
    warnings: tuple[str, ...]
    """What must be read before the cells."""
