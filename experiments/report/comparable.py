"""Rows that may be compared with one another: one model, text, protocol and device; and how each run is called and coloured."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from experiments.compare.paired import conditions
from experiments.report.colours import METHODS
from experiments.results.overview import distinct_names, facts
from experiments.results.record import FINISHED, Row, flatten, settings


@dataclass(frozen=True)
class Entry:
    """A finished run, as the report calls it."""

    row: Row
    name: str
    """Unlike that of any other run of its group."""
    family: str
    """What it has in common with runs that differ in bits alone."""
    style: int
    """Number of its look in the report; see `colours.look`."""

    @property
    def bits(self) -> str:
        """Bits of its grid, as its name has them; bits per weight, rounded, where it has none or several."""
        named = re.search(r"(\d+)-bit", self.row["name"])
        return named[1] if named else f"{_bits(self.row):.0f}"

    @property
    def is_dense(self) -> bool:
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
        return [entry.row for entry in self.entries]

    @property
    def dense(self) -> Entry | None:
        return next((entry for entry in self.entries if entry.is_dense), None)


def groups(rows: list[Row]) -> list[Group]:
    """The finished rows in groups, in the order in which each group first appears."""
    finished = sorted((row for row in rows if row["status"] == FINISHED), key=_order)
    families = _families(finished)
    styles = _styles(
        {
            families[row["run_id"]]: row["choices"].get("method", row["name"])
            for row in finished
            if not _is_dense(row)
        }
    )
    members: dict[str, list[Row]] = {}
    for row in finished:
        members.setdefault(json.dumps(conditions(row), sort_keys=True), []).append(row)
    return [_group(f"g{number}", each, families, styles) for number, each in enumerate(members.values(), 1)]


def _group(key: str, rows: list[Row], families: dict[str, str], styles: dict[str, int]) -> Group:
    entries = tuple(
        Entry(row, name, families[row["run_id"]], styles.get(families[row["run_id"]], 0))
        for row, name in zip(rows, distinct_names(rows), strict=True)
    )
    return Group(key, title(rows[0]), facts(rows[-1]), entries)


def title(row: Row) -> str:
    """The names of a row's model and text."""
    model, text = row["identity"]["model"], row["identity"]["text"]
    return f"{model.get('name', row['choices'].get('model', 'model'))} on {text.get('name', row['choices'].get('text', 'text'))}"


def _styles(methods: dict[str, str]) -> dict[str, int]:
    """Return family → style, given family → method: a colour for each method, and marks that tell apart what shares it."""
    numbers = {method: number % len(METHODS) for number, method in enumerate(dict.fromkeys(methods.values()))}
    used: Counter[int] = Counter()
    styles = {}
    for family, method in methods.items():
        colour = numbers[method]
        styles[family] = colour + len(METHODS) * used[colour]
        used[colour] += 1
    return styles


def _is_dense(row: Row) -> bool:
    return row["dense_run_id"] is None


def _order(row: Row) -> tuple[Any, ...]:
    """Dense runs first, then by method and falling bits."""
    return (title(row), not _is_dense(row), row["choices"].get("method", ""), -_bits(row), row["run_id"])


def _bits(row: Row) -> float:
    return row["metrics"].get("size", {}).get("bits_per_weight", 0.0)


def _families(rows: list[Row]) -> dict[str, str]:
    """Run id → name of its family: the method's name, and the options that tell it from others of that name."""
    stems = [_without_bits(row) for row in rows]
    unlike = {json.dumps(stem, sort_keys=True): stem for stem in stems}
    names = dict(zip(unlike, distinct_names(list(unlike.values())), strict=True))
    return {
        row["run_id"]: names[json.dumps(stem, sort_keys=True)] for row, stem in zip(rows, stems, strict=True)
    }


def _without_bits(row: Row) -> Row:
    """A row's method and calibration alone, with the bits taken out."""
    made, bits = settings(row), ("bits", "bits_per_weight")
    method = {
        key: value
        for key, value in flatten(made.get("method", {})).items()
        if key.rpartition(".")[2] not in bits
    }
    kept = {"method": method, "calibration": made.get("calibration", {})}
    return {"name": row["choices"].get("method", row["name"]), "identity": kept, "options": {}}
