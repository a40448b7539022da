"""The report as the JSON that the page's scripts read.

Text that many runs share stands once: details are numbers of entries of one list. Each figure has a text of
its own, so that the browser reads the rows of a figure when it is drawn.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite, isnan
from sys import float_info
from typing import Any

from markupsafe import Markup

from experiments.report.comparable import Group
from experiments.report.details import Details, details
from experiments.report.run_table import FILTERS, Cell, Column, Record, Table
from experiments.results.columns import ABSENT
from experiments.results.record import Row


def script(value: Any) -> Markup:
    """Return JSON that may stand in an element `<script>`: nothing in it ends the element."""
    text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def plain(value: Any) -> Any:
    """Return nested values with numbers that JSON has: the largest for an infinite one, null for NaN."""
    if isinstance(value, float) and not isfinite(value):
        return None if isnan(value) else float_info.max if value > 0 else -float_info.max
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def data(table: Table, groups: Sequence[Group]) -> dict[str, Any]:
    """Return columns, filters, groups, runs and their details; `assets/data.js` reads it."""
    rows = {row["run_id"]: row for group in groups for row in group.rows}
    texts: dict[str, int] = {}
    return {
        "columns": [vars(column) for column in table.columns],
        "filters": [
            {"key": name, "heading": FILTERS[name], "values": values}
            for name, values in table.filters.items()
        ],
        "groups": [{"key": group.key, "title": group.title} for group in groups],
        "runs": [_run(record, table, rows[record.run_id], texts) for record in table.records],
        "texts": list(texts),
    }


def _run(record: Record, table: Table, row: Row, texts: dict[str, int]) -> dict[str, Any]:
    return {
        "id": record.run_id,
        "group": record.group,
        "ranked": record.ranked,
        "filters": [record.filters[name] for name in table.filters],
        "cells": [_cell(record.cells[column.key], column) for column in table.columns],
        "vectors": record.vectors,
        "details": _details(details(row), texts),
    }


def _cell(cell: Cell, column: Column) -> Any:
    """Return null for an empty cell, words and number for one that is sorted by a number, else its words."""
    if column.number and cell.sort is not None:
        return [cell.words, _short(cell.sort)]
    return None if cell.words == ABSENT else cell.words


def _short(number: Any) -> Any:
    return float(f"{number:.9g}") if isinstance(number, float) else number


def _details(found: Details, texts: dict[str, int]) -> list[Any]:
    """Return a run's details: its command, and numbers of texts for each list of pairs."""
    lists = (found.chosen, found.others, found.provenance)
    pairs = [
        [texts.setdefault(f"{key}\t{value}", len(texts)) for key, value in each.items()] for each in lists
    ]
    return [found.command, *pairs]
