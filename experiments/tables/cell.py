"""A cell of a table: our value, the paper's value, the run, and the judgement."""

import enum
from dataclasses import dataclass

from experiments.compare.paired import Comparison
from experiments.results.record import Row
from experiments.tables.spec import Table


class Judgement(enum.Enum):
    """Judgement of a cell."""

    reproduced = "inside the tolerance"
    differs = "outside the tolerance"
    untrusted = "the dense model does not agree with the paper's, or is not measured"
    refused = "not comparable with the paper's"
    unjudged = "nothing to judge by"
    not_applicable = "no such run, or none that has the figure"
    missing = "no run"


@dataclass(frozen=True)
class Cell:
    """A value in the unit of its column."""

    verdict: Judgement
    paper: float | None = None
    ours: float | None = None
    row: Row | None = None
    note: str = ""
    best: bool = False
    comparison: Comparison | None = None
    """Comparison with the column's reference row; `ours` is then a difference in mean NLL, nats per token."""

    @property
    def difference(self) -> float | None:
        """Our value minus the paper's; None where the two are not comparable."""
        if self.ours is None or self.paper is None or self.verdict is Judgement.refused:
            return None
        return self.ours - self.paper


@dataclass(frozen=True)
class Filled:
    """A table with its cells."""

    table: Table
    cells: tuple[tuple[Cell, ...], ...]
    """Cells of each row, in the order of the columns."""
    warnings: tuple[str, ...]
    """Warnings to print above the table."""
