"""Rows as a data frame, and the frame as a Parquet file."""

from typing import IO, Any

import pandas as pd

from experiments.results import flat
from experiments.results.paths import as_json
from experiments.results.schema import Row

LEFT_OUT = ("samples", "config")
"""Parts of a row that stay in its file."""


def tabulate(rows: list[Row]) -> pd.DataFrame:
    """Return rows as the lines of a table, in their order: flat columns first, then dotted names."""
    table = pd.json_normalize([_line(row) for row in rows])
    for name in ("bits", "group_size"):
        if name in table:
            numbers = pd.to_numeric(table[name], errors="coerce").astype("Float64")
            whole = (numbers.dropna() % 1 == 0).all()
            table[name] = numbers.astype("Int64") if whole else numbers
    return table


def _line(row: Row) -> dict[str, Any]:
    first = {key: row[key] for key in ("run_id", "name", "status")} | flat.facts(row)
    metrics = {key: value for key, value in flat.metrics(row).items() if key not in first}
    return first | metrics | {key: row[key] for key in row if key not in LEFT_OUT}


def write(table: pd.DataFrame, file: IO[bytes]) -> None:
    """Write a table of rows as Parquet; a column of several types of values is written as JSON text."""
    plain = table.copy()
    for name in plain:
        if pd.api.types.is_object_dtype(plain[name]) and not _uniform(plain[name]):
            plain[name] = plain[name].map(as_json, na_action="ignore")
    plain.to_parquet(file)


def _uniform(values: "pd.Series[Any]") -> bool:
    """Return whether Parquet has one type for all values: text, truth, or lists of one of these."""
    kinds = {type(value) for value in values.dropna()}
    inner = {type(item) for value in values if isinstance(value, list) for item in value}
    return len(kinds) <= 1 and len(inner) <= 1 and not (kinds | inner) & {dict, int} and list not in inner
