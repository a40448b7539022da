"""Which finished row is a cell's run: the one of the same model, text, method, layers and calibration, measured as the table asks.

Device, kernel and what else was measured are left open: they do not make it another run of the table. Two rows that differ only there both
match, and the table refuses to choose; two rows of which one has another number of windows do not, and the cell says which was seen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.common.errors import USER_ERRORS, explain
from experiments.common.errors import not_applicable as makes_no_sense
from experiments.config.options import overrides, run_of, split
from experiments.evaluation import Evaluation, Perplexity
from experiments.models.source import DType
from experiments.results.record import FINISHED, Row, get_path
from experiments.runs.calibration import CalibrationSource, CalibrationText
from sinq.common import named

OPEN = ("tasks", "batch_size", "rounds")
"""Options of an evaluation that do not change what is measured, only how much else, or how often."""


@dataclass(frozen=True)
class CellQuery:
    """What a row must be to fill a cell."""

    subject: tuple[str, ...]
    """Options of model, text and evaluation."""
    method_options: tuple[str, ...]
    """Options of the method."""
    metric: str

    @classmethod
    def of(cls, options: Mapping[str, Any], metric: str) -> "CellQuery":
        subject, method_options = split(options)
        return cls(overrides(subject), overrides(method_options), metric)


def not_applicable(wanted: CellQuery) -> str:
    """Why there can be no such run; empty where there can.

    Raises:
        HydraException, ValueError: an option is a mistake.
    """
    try:
        run_of(wanted.method_options)
    except USER_ERRORS as error:
        if not makes_no_sense(error):
            raise
        return explain(error)
    return ""


def find(rows: Iterable[Row], wanted: CellQuery) -> tuple[list[Row], list[str]]:
    """The rows that match; and, of those that nearly do, why not."""
    near = [row for row in _same_subject(rows, wanted) if _same_treatment(row, wanted)]
    obstacles = {row["run_id"]: _obstacles(row, wanted) for row in near}
    matching = [row for row in near if not obstacles[row["run_id"]]]
    return matching, [
        f"run {run_id} does not fit: {'; '.join(why)}" for run_id, why in obstacles.items() if why
    ]


def _same_subject(rows: Iterable[Row], wanted: CellQuery) -> list[Row]:
    finished = [row for row in rows if row["status"] == FINISHED]
    if not finished:
        return []  # nothing to compose for
    run = run_of(wanted.subject)
    model = {
        part: value for part, value in run.model.identity().items() if value is not None
    }  # any revision where none is pinned
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
    """A calibration's options, its text by name: what the text says is compared by those who load it."""
    options: dict[str, Any] = named.described(source)
    return options | {"text": source.text.name} if isinstance(source, CalibrationText) else {}


def _recorded(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {**identity, "text": identity["text"]["name"]} if identity else {}


def _obstacles(row: Row, wanted: CellQuery) -> list[str]:
    """Why a row of the same run cannot fill the cell."""
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
    """In which options the measurement that has the metric is not the one that was asked for."""
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
    """Whether as many windows were read, of as many tokens. A model's shorter context counts as it is."""
    measured, seqlen = row["metrics"]["perplexity"], row["options"]["evaluation"]["perplexity"]["seqlen"]
    found = [] if seqlen == asked.seqlen else [f"seqlen is {seqlen}, not {asked.seqlen}"]
    available = measured["windows_available"]
    count = available if asked.windows is None else min(asked.windows, available)
    return (
        found if measured["windows"] == count else [*found, f"windows is {measured['windows']}, not {count}"]
    )
