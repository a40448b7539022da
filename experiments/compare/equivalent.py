"""Equivalent rows: the same treatment of the same model, measured on the same windows of the same text.

Such rows differ in what else was measured (latency, zero-shot tasks), or were made by another version of the
method. Where one is wanted, the newest is taken, and a line says so.
"""

from collections.abc import Sequence

from experiments.compare.paired import conditions
from experiments.results.names import distinct_names, treatment
from experiments.results.paths import as_json, get_path
from experiments.results.record import Row

AROUND = ("layers.", "calibration.", "stream", "kernel")
"""Parts of a treatment beside the method."""


def kind(row: Row) -> str:
    """Return a text that is equal for equivalent rows."""
    options = {path: value for path, value in treatment(row).items() if not path.endswith(".version")}
    calibration = get_path(row, "identity.calibration.text.fingerprint")
    return as_json([options, calibration, conditions(row)])


def newest(rows: Sequence[Row]) -> list[Row]:
    """Return the newest row of each kind, the kinds in the order in which they first appear."""
    found: dict[str, Row] = {}
    for row in rows:
        other = found.setdefault(kind(row), row)
        if finished_at(row) > finished_at(other):
            found[kind(row)] = row
    return list(found.values())


def finished_at(row: Row) -> str:
    """Return when a run was finished, as text that sorts by time; empty where the row does not say."""
    return str(get_path(row, "provenance.finished_at") or "")


def treated_alike(row: Row, other: Row) -> bool:
    """Return whether two rows differ in the method alone: layers, stream and calibration are the same.

    A method without calibration is a fair counterpart of one that has it.
    """
    first, second = treatment(row), treatment(other)
    shared = {path for path in (first.keys() | second.keys()) if path.startswith(AROUND)}
    if not any(path.startswith("calibration.") for path in first) or not any(
        path.startswith("calibration.") for path in second
    ):
        shared = {path for path in shared if not path.startswith("calibration.")}
    return all(first.get(path) == second.get(path) for path in shared)


def listed(rows: Sequence[Row]) -> str:
    """Return rows as further lines of a message: id and full name."""
    full_names = zip(rows, distinct_names(rows), strict=True)
    return "".join(f"\n  {row['run_id']}  {name}" for row, name in full_names)
