"""Versions of methods, evaluations and calibration sources, in rows and in this code.

A version is raised when the same options give other numbers than before (`sinq/common/named.py`). Rows of
an earlier version are right about what ran then, and are not ranked beside rows of the newest.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from experiments.evaluation import Evaluation
from experiments.results.paths import get_path
from experiments.results.record import Row
from experiments.runs.calibration import CalibrationSource
from sinq import Method
from sinq.common.named import Named, named, names

Versions = Mapping[tuple[str, str], int]
"""Kind and name → the newest version."""
PARTS = {"method": "method", "evaluation": "evaluation.perplexity", "calibration": "calibration"}
"""Kind → path in a row's identity."""
ROOTS: dict[str, type[Named]] = {
    "method": Method,
    "evaluation": Evaluation,
    "calibration": CalibrationSource,
}


def of_code() -> Versions:
    """Return the versions of all classes that are imported."""
    return {(kind, name): named(root, name).version for kind, root in ROOTS.items() for name in names(root)}


def of_row(row: Row) -> Versions:
    """Return the versions that a row was made with, of methods inside its method too."""
    return {
        (kind, each["name"]): each["version"]
        for kind, path in PARTS.items()
        for each in _headed(get_path(row, f"identity.{path}"))
    }


def newest(rows: Iterable[Row], code: Versions) -> Versions:
    """Return the newest versions that the code or a row has."""
    found = dict(code)
    for row in rows:
        for key, version in of_row(row).items():
            found[key] = max(version, found.get(key, version))
    return found


def outdated(row: Row, known: Versions) -> list[str]:
    """Return a line for each part of a row that has a newer version."""
    return [
        f"{name} is of version {version}, the newest is {known[kind, name]}: run it again"
        for (kind, name), version in of_row(row).items()
        if version < known.get((kind, name), version)
    ]


def _headed(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the nested dicts that have a name and a version."""
    if not isinstance(value, dict):
        return
    if isinstance(value.get("name"), str) and isinstance(value.get("version"), int):
        yield value
    for inner in value.values():
        yield from _headed(inner)
