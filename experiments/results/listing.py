"""The listing of `python -m experiments.results`: the most important columns of rows, as a table."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

COLUMNS = {
    "run": "run_id", "name": "name", "model": "identity.model.name", "text": "identity.text.name",
    "status": "status", "perplexity": "metrics.perplexity.value", "dense": "metrics.perplexity.dense",
    "windows": "metrics.perplexity.windows", "bits/w": "metrics.size.bits_per_weight",
    "model bytes": "metrics.size.model_nbytes", "decode ratio": "metrics.latency.decode.ratio",
    "quantize s": "metrics.compression.seconds_quantize", "reason": "reason",
}  # fmt: skip
"""Heading → column of `record.load`."""
QUALITY = {
    "run": "run_id", "name": "name", "model": "identity.model.name", "text": "identity.text.name",
    "bits/w": "metrics.size.bits_per_weight", "perplexity": "metrics.perplexity.value",
    "KL": "metrics.perplexity.kl", "flips": "metrics.perplexity.flip_rate",
}  # fmt: skip
"""Heading → column of `record.load`, beside a comparison."""


def overview(rows: pd.DataFrame, columns: Mapping[str, str] = COLUMNS) -> pd.DataFrame:
    """Return the chosen columns of a table of rows; columns that no row has are left out."""
    present = {heading: rows[column] for heading, column in columns.items() if column in rows}
    return pd.DataFrame(present).dropna(axis="columns", how="all")


def as_table(frame: pd.DataFrame) -> Table:
    """Return a data frame as a table of the console: floats with five digits, – for missing values."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, dtype in frame.dtypes.items():
        view.add_column(str(heading), justify="right" if pd.api.types.is_numeric_dtype(dtype) else "left")
    for values in frame.itertuples(index=False):
        view.add_row(*map(_cell, values))
    return view


def _cell(value: Any) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
