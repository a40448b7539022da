"""Match finished rows with cells: equal model, text, method, layers, calibration and measurement.

Device, kernel and further measurements are left open. Two rows that differ only there both match, and the
table refuses to choose. A row with another number of windows does not match, and the cell's note names it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.common.errors import USER_ERRORS, explain
from experiments.common.errors import not_applicable as makes_no_sense
from experiments.config.options import overrides, run_of, split
from experiments.data.bos import Bos
from experiments.evaluation import Evaluation, Perplexity
from experiments.models.source import DType
from experiments.results.paths import get_path
from experiments.results.record import FINISHED, Row
from experiments.runs.calibration import CalibrationSource, CalibrationText
from sinq.common import named

OPEN = ("tasks", "batch_size", "rounds")
"""Options of an evaluation that do not change a metric's definition, only further metrics or repetitions."""


@dataclass(frozen=True)
class CellQuery:
    """Options and metric that a row must have to fill a cell."""

    subject: tuple[str, ...]
    """Options of model, text and evaluation."""
    method_options: tuple[str, ...]
    """Options of the method."""
    metric: str
    """Path in a row's `metrics`."""

    @classmethod
    def of(cls, options: Mapping[str, Any], metric: str) -> "CellQuery":
        """Return the query for a cell with these options of `run.py`."""
        subject, method_options = split(options)
        return cls(overrides(subject), overrides(method_options), metric)


def not_applicable(wanted: CellQuery) -> str:
    """Return the reason why no such run can exist; empty where it can.

    Raises:
        HydraException, ValueError: an option is invalid.
    """
    try:
        run_of(wanted.method_options)
    except USER_ERRORS as error:
        if not makes_no_sense(error):
            raise
        return explain(error)
    return ""


def find(rows: Iterable[Row], wanted: CellQuery) -> tuple[list[Row], list[str]]:
    """Return the rows that match, and for each run that nearly matches, the reason why it does not."""
    near = [row for row in _same_subject(rows, wanted) if _same_treatment(row, wanted)]
    obstacles = {row["run_id"]: _obstacles(row, wanted) for row in near}
    matching = [row for row in near if not obstacles[row["run_id"]]]
    misfits = [f"run {run_id} does not fit: {'; '.join(why)}" for run_id, why in obstacles.items() if why]
    return matching, misfits


def _same_subject(rows: Iterable[Row], wanted: CellQuery) -> list[Row]:
    finished = [row for row in rows if row["status"] == FINISHED]
    if not finished:
        return []  # saves composing the run
    run = run_of(wanted.subject)
    # Without a pinned revision, the revision is None and any commit matches.
    model = {part: value for part, value in run.model.asked().items() if value is not None}
    text = run.text.name
    return [
        row
        for row in finished
        if _within(model, row["identity"]["model"]) and row["identity"]["text"]["name"] == text
    ]


def _within(part: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    return all(key in whole and whole[key] == value for key, value in part.items())


def _same_treatment(row: Row, wanted: CellQuery) -> bool:
    run, identity = run_of(wanted.method_options), row["identity"]
    if identity["method"] != named.described(run.method):
        return False
    if not run.method.changes_model:
        return True
    if identity["layers"] != named.described(run.layers):
        return False
    return not run.method.needs_calibration or _recorded(identity["calibration"]) == _options(run.calibration)


def _options(source: CalibrationSource) -> dict[str, Any]:
    """Return a calibration's options, with the text by name: contents are compared where texts are loaded."""
    if not isinstance(source, CalibrationText):
        return {}
    options: dict[str, Any] = named.described(source)
    return options | {"text": (source.text.name, "documents" if source.text.by_document else None)}


def _recorded(identity: Mapping[str, Any]) -> dict[str, Any]:
    if not identity:
        return {}
    return {**identity, "text": (identity["text"]["name"], identity["text"].get("draw"))}


def _obstacles(row: Row, wanted: CellQuery) -> list[str]:
    """Return the reasons why a row of the same run cannot fill the cell."""
    run = run_of(wanted.subject)
    found = [] if get_path(row["metrics"], wanted.metric) is not None else [f"it has no {wanted.metric}"]
    dtype = row["identity"]["model"]["dtype"]
    if run.model.dtype is not DType.auto and run.model.dtype.name != dtype:
        found.append(f"dtype is {dtype}, not {run.model.dtype.name}")
    asked = run.evaluation.get("perplexity")
    if isinstance(asked, Perplexity) and "perplexity" in row["metrics"]:
        found += _windows(row, asked)
    return found + _other_options(row, wanted.metric.partition(".")[0], run.evaluation)


def _other_options(row: Row, name: str, asked: Mapping[str, Evaluation]) -> list[str]:
    """Return the options in which the measurement of the metric differs from the one asked for."""
    measured, wanted = row["options"]["evaluation"].get(name), asked.get(name)
    if measured is None or wanted is None or isinstance(wanted, Perplexity):
        return []
    options = {
        option: value
        for option, value in named.described(wanted, defaults=True).items()
        if option not in OPEN
    }
    return [
        f"{option} is {measured.get(option)}, not {value}"
        for option, value in options.items()
        if measured.get(option) != value
    ]


def _windows(row: Row, asked: Perplexity) -> list[str]:
    """Return differences in the number and the length of windows.

    Where a text has fewer windows than asked for, all of them are enough.
    """
    measured, seqlen = row["metrics"]["perplexity"], row["options"]["evaluation"]["perplexity"]["seqlen"]
    found = [] if seqlen == asked.seqlen else [f"seqlen is {seqlen}, not {asked.seqlen}"]
    bos = row["options"]["evaluation"]["perplexity"].get("bos", Bos.first.name)
    if bos != asked.bos.name:
        found.append(f"bos is {bos}, not {asked.bos.name}")
    available = measured["windows_available"]
    count = available if asked.windows is None else min(asked.windows, available)
    if measured["windows"] != count:
        found.append(f"windows is {measured['windows']}, not {count}")
    return found
