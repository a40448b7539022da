"""Groups of comparable rows (one model, text, protocol and device), and the name of each run."""

import json
import re
from dataclasses import dataclass
from typing import Any

from experiments.compare.paired import conditions
from experiments.results.names import TREATMENT, distinct_names, method_names, subject, titles
from experiments.results.overview import facts
from experiments.results.paths import flatten, settings
from experiments.results.record import FINISHED, Row


@dataclass(frozen=True)
class Entry:
    """A finished run, with its name in the report."""

    row: Row
    name: str
    """Unique in the group."""
    family: str
    """Name shared by runs that differ in bits alone."""

    @property
    def bits(self) -> str:
        """Bits of the grid, taken from the run's name; else bits per weight, rounded."""
        named = re.search(r"(\d+)-bit", self.row["name"])
        return named[1] if named else f"{_bits(self.row):.0f}"

    @property
    def is_dense(self) -> bool:
        """True for a run of the dense model."""
        return _is_dense(self.row)


@dataclass(frozen=True)
class Group:
    """Finished runs of one protocol, the dense one first."""

    key: str
    title: str
    facts: str
    entries: tuple[Entry, ...]

    @property
    def rows(self) -> list[Row]:
        """Rows of the entries, in the same order."""
        return [entry.row for entry in self.entries]

    @property
    def dense(self) -> Entry | None:
        """Entry of the dense model; None where it was not measured."""
        return next((entry for entry in self.entries if entry.is_dense), None)


def groups(rows: list[Row]) -> list[Group]:
    """Return the finished rows in groups, in the order in which each group first appears."""
    finished = sorted((row for row in rows if row["status"] == FINISHED), key=_order)
    families = _families(finished)
    members: dict[str, list[Row]] = {}
    for row in finished:
        members.setdefault(json.dumps(conditions(row), sort_keys=True), []).append(row)
    headings = titles([each[-1] for each in members.values()])
    return [
        _group(f"g{number}", title, each, families)
        for number, (title, each) in enumerate(zip(headings, members.values(), strict=True), 1)
    ]


def _group(key: str, title: str, rows: list[Row], families: dict[str, str]) -> Group:
    entries = tuple(
        Entry(row, name, families[row["run_id"]])
        for row, name in zip(rows, distinct_names(rows), strict=True)
    )
    return Group(key, title, facts(rows[-1]), entries)


def _method(row: Row) -> str:
    return row["choices"].get("method", row["name"])


def _is_dense(row: Row) -> bool:
    return row["dense_run_id"] is None


def _order(row: Row) -> tuple[Any, ...]:
    """Return a sort key: dense runs first, then by method and falling bits."""
    return (subject(row), not _is_dense(row), row["choices"].get("method", ""), -_bits(row), row["run_id"])


def _bits(row: Row) -> float:
    return row["metrics"].get("size", {}).get("bits_per_weight", 0.0)


def _families(rows: list[Row]) -> dict[str, str]:
    """Map run ids to family names: the method's name and the options that set it apart from namesakes."""
    stems = [_without_bits(row) for row in rows]
    distinct = {json.dumps(stem, sort_keys=True): stem for stem in stems}
    names = dict(zip(distinct, method_names(list(distinct.values())), strict=True))
    return {
        row["run_id"]: names[json.dumps(stem, sort_keys=True)] for row, stem in zip(rows, stems, strict=True)
    }


def _without_bits(row: Row) -> Row:
    """Return a row's method and calibration alone, without the bits."""
    options = settings(row)
    method = {
        key: value
        for key, value in flatten(options.get("method", {})).items()
        if key.rpartition(".")[2] not in ("bits", "bits_per_weight")
    }
    kept = {part: options[part] for part in TREATMENT if part in options} | {"method": method}
    return {"name": _method(row), "identity": kept, "options": {}}
