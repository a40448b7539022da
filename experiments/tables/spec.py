"""Schema of `conf/tables/*.yaml`. An unknown key or a wrong type fails while the file is read.

The classes are not frozen because OmegaConf cannot fill frozen ones from a file. Nothing changes them
afterwards.
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
    """Paper, version and table that the paper's values are from."""

    paper: str
    version: str
    table: str


@dataclass
class Column:
    """A metric of each row's run."""

    label: str
    group: str = ""
    """A heading over neighbouring columns."""
    run: dict[str, Any] = field(default_factory=dict)
    """Options of the column's runs, as `run.py` takes them."""
    metric: str | None = None
    """Path in a row's `metrics`; None: the table's."""
    add: list[str] = field(default_factory=list)
    """Paths of metrics to add, such as seconds of statistics to seconds of quantizing."""
    scale: float = 1.0
    """Factor of the displayed value: 1e-9 for GB."""
    decimals: int | None = None
    tolerance: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    """Path in a row → the value, or list of accepted values, for which the paper's value is comparable.

    Added to the table's.
    """
    relative: bool = False
    """True for a distance to the dense model or a cost of compressing; cells of baseline rows stay empty."""
    against: str | None = None
    """Label of a reference row in each section.

    Cells are then differences in mean NLL to it, nats per token, with their 95 % interval.
    """
    refused: str | None = None
    """Reason for showing no run of this harness beside the paper's values."""
    incomparable: str | None = None
    """Reason for showing runs beside the paper's values without comparing them."""
    paper_packing: bool = False
    """True for the bytes of a model in the paper's packing (`packing.py`) instead of a metric."""


@dataclass
class Line:
    """A row of the table, mostly a method."""

    label: str
    section: str = ""
    """Rows of one section compete for the best value of a column."""
    run: dict[str, Any] = field(default_factory=dict)
    paper: list[float | None] = field(default_factory=list)
    """The paper's values in the order of the columns, null for a missing one; empty without such a row."""
    baseline: bool = False
    """True for the dense model, which must agree with the paper before other values are judged."""
    tolerance: float | None = None
    refused: str | None = None


@dataclass
class Table:
    """A table: columns, rows, and the settings that all cells share.

    Raises:
        ValueError: values, tolerances, labels or sources are inconsistent.
    """

    title: str
    columns: list[Column]
    rows: list[Line]
    source: Source | None = None
    metric: str = "perplexity.value"
    run: dict[str, Any] = field(default_factory=dict)
    """Options of all runs of the table."""
    protocol: dict[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    """Relative difference from the paper's value up to which a value counts as reproduced.

    A row's tolerance goes first, then a column's.
    """
    decimals: int = 2
    incomparable: str | None = None
    """Reason for comparing no value of the table, as in `Column.incomparable`."""
    notes: list[str] = field(default_factory=list)
    """Notes below the table."""

    def __post_init__(self) -> None:
        for line in self.rows:
            if line.paper and len(line.paper) != len(self.columns):
                raise ValueError(
                    f"row {line.label!r} has {len(line.paper)} of the paper's values"
                    f" for {len(self.columns)} columns"
                )
            self._check_sizes(line)
            if any(value is not None for value in line.paper) and self.source is None:
                raise ValueError(f"row {line.label!r} has a paper's values, but the table names no source")
        of_rows = [line.tolerance for line in self.rows]
        of_columns = [column.tolerance for column in self.columns]
        for tolerance in (self.tolerance, *of_rows, *of_columns):
            if tolerance is not None and not tolerance > 0:
                raise ValueError(f"tolerance={tolerance} is not possible; it must be above 0, or left out")
        for column in self.columns:
            if column.against not in (None, *(line.label for line in self.rows)):
                raise ValueError(f"against={column.against} is not possible; it must be the label of a row")
        _distinct("columns", [(column.group, column.label) for column in self.columns])
        _distinct("rows", [(line.section, line.label) for line in self.rows])

    def _check_sizes(self, line: Line) -> None:
        """Raise `ValueError` where bytes in our packing would be judged by bytes in the paper's."""
        for column, paper in zip(self.columns, line.paper, strict=False):
            judged = paper is not None and not (column.incomparable or self.incomparable)
            if judged and (column.metric or self.metric).startswith("size.") and not column.paper_packing:
                name = " ".join(filter(None, (column.group, column.label)))
                raise ValueError(
                    f"column {name}: sizes are compared in the paper's packing only;"
                    " set paper_packing: true, or give a reason in incomparable"
                )

    def options(self, line: Line, column: Column) -> dict[str, Any]:
        """Return the options of a cell's run; a row's override a column's, and a column's the table's."""
        return {**self.run, **column.run, **line.run}

    def protocol_of(self, column: Column) -> Mapping[str, Any]:
        """Return the paper's protocol in a column: path in a row → accepted value or values."""
        return {**self.protocol, **column.protocol}

    def tolerance_of(self, line: Line, column: Column) -> float | None:
        """Return the tolerance of a cell: the row's, else the column's, else the table's."""
        return next((t for t in (line.tolerance, column.tolerance, self.tolerance) if t is not None), None)


def _distinct(what: str, names: list[tuple[str, str]]) -> None:
    twice = sorted({" ".join(name).strip() for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(f"{what}: {', '.join(twice)} given twice" if twice else f"the table has no {what}")


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of all tables in a folder."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def load(name: str, folder: Path = FOLDER) -> Table:
    """Return the table of that name.

    Raises:
        ValueError: there is none, or its file is invalid; the message names the file and the key.
    """
    file = folder / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"table={name} does not exist; choose one of {', '.join(names(folder))}")
    try:
        read = OmegaConf.merge(OmegaConf.structured(Table), OmegaConf.load(file))
        table = OmegaConf.to_object(read)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ValueError(f"{file}: {_key(error)}{str(error).strip().splitlines()[0]}") from error
    assert dataclasses.is_dataclass(table)
    return table  # type: ignore[return-value]


def _key(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    return f"{key}: " if key else ""
