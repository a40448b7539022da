"""What a table is: the schema of `conf/tables/*.yaml`. A key that is not here, or a wrong type, fails while the file is read.

(The classes are not frozen because OmegaConf cannot fill frozen ones from a file. Nothing changes them afterwards.)
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.common.paths import conf_dir

FOLDER = conf_dir() / "tables"


@dataclass
class Source:
    """Where values were printed."""

    paper: str
    version: str
    table: str


@dataclass
class Column:
    """One figure of each row's run."""

    label: str
    group: str = ""
    """A heading over neighbouring columns."""
    run: dict[str, Any] = field(default_factory=dict)
    """Options of its runs, as `run.py` takes them."""
    metric: str | None = None
    """Place in a row's `metrics`; the table's where it is not given."""
    add: list[str] = field(default_factory=list)
    """Other metrics that are added to it: seconds of statistics to seconds of quantizing."""
    scale: float = 1.0
    """What the metric is multiplied by before it is shown: 1e-9 for GB."""
    decimals: int | None = None
    tolerance: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    """Place in a row → what it must be, or a list of what it may be, for the paper's value to stand beside it; added to the table's."""
    relative: bool = False
    """Whether it is a distance to the dense model, or a cost of compressing: a baseline row has none, and its cell stays empty."""
    against: str | None = None
    """Label of a row in each section. Cells are then differences in mean NLL to it, nats per token, with their 95 % interval."""
    refused: str | None = None
    """Why no run of this harness may stand beside the paper's values."""
    incomparable: str | None = None
    """Why runs stand beside the paper's values, but are not compared with them."""


@dataclass
class Line:
    """A row of the table: mostly, a method."""

    label: str
    section: str = ""
    """Rows of one section compete for the best value of a column."""
    run: dict[str, Any] = field(default_factory=dict)
    paper: list[float | None] = field(default_factory=list)
    """The paper's values in the order of the columns, null where it has none; left out where it has nothing."""
    baseline: bool = False
    """Whether this is the dense model, which must agree with the paper before anything else is believed."""
    tolerance: float | None = None
    refused: str | None = None


@dataclass
class Table:
    """A whole table."""

    title: str
    columns: list[Column]
    rows: list[Line]
    source: Source | None = None
    metric: str = "perplexity.value"
    run: dict[str, Any] = field(default_factory=dict)
    """Options all its runs have."""
    protocol: dict[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    """Relative difference from the paper's value up to which a value counts as reproduced; a row's own comes first, then a column's."""
    decimals: int = 2
    incomparable: str | None = None
    """As a column's, for all of them."""
    notes: list[str] = field(default_factory=list)
    """Printed below."""

    def __post_init__(self) -> None:
        for line in self.rows:
            if line.paper and len(line.paper) != len(self.columns):
                raise ValueError(
                    f"row {line.label!r} has {len(line.paper)} of the paper's values for {len(self.columns)} columns"
                )
            if any(value is not None for value in line.paper) and self.source is None:
                raise ValueError(f"row {line.label!r} has a paper's values, but the table names no source")
        for tolerance in (
            self.tolerance,
            *(line.tolerance for line in self.rows),
            *(column.tolerance for column in self.columns),
        ):
            if tolerance is not None and not tolerance > 0:
                raise ValueError(f"tolerance={tolerance} is not possible; it must be above 0, or left out")
        for column in self.columns:
            if column.against not in (None, *(line.label for line in self.rows)):
                raise ValueError(f"against={column.against} is not possible; it must be the label of a row")
        _distinct("columns", [(column.group, column.label) for column in self.columns])
        _distinct("rows", [(line.section, line.label) for line in self.rows])

    def options(self, line: Line, column: Column) -> dict[str, Any]:
        """The options of a cell's run; a row's go before a column's, and these before the table's."""
        return {**self.run, **column.run, **line.run}

    def protocol_of(self, column: Column) -> Mapping[str, Any]:
        return {**self.protocol, **column.protocol}

    def tolerance_of(self, line: Line, column: Column) -> float | None:
        return next((t for t in (line.tolerance, column.tolerance, self.tolerance) if t is not None), None)


def _distinct(what: str, names: list[tuple[str, str]]) -> None:
    twice = sorted({" ".join(name).strip() for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(f"{what}: {', '.join(twice)} given twice" if twice else f"the table has no {what}")


def names(folder: Path = FOLDER) -> list[str]:
    """All tables there are."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def load(name: str, folder: Path = FOLDER) -> Table:
    """The table of that name.

    Raises:
        ValueError: there is none, or its file has a mistake; the message names file and place.
    """
    file = folder / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"table={name} does not exist; choose one of {', '.join(names(folder))}")
    try:
        read = OmegaConf.merge(OmegaConf.structured(Table), OmegaConf.load(file))
        table = OmegaConf.to_object(read)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ValueError(f"{file}: {_place(error)}{str(error).strip().splitlines()[0]}") from error
    assert dataclasses.is_dataclass(table)
    return table  # type: ignore[return-value]


def _place(error: Exception) -> str:
    place = getattr(error, "full_key", None)
    return f"{place}: " if place else ""
