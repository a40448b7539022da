"""The columns of rows that a person looks at first, and how they are printed."""

from collections.abc import Mapping

import pandas as pd
from rich import box
from rich.table import Table

COLUMNS = {
    "run": "run_id", "name": "name", "model": "identity.model.name", "text": "identity.text.name", "status": "status",
    "perplexity": "metrics.perplexity.value", "dense": "metrics.perplexity.dense", "windows": "metrics.perplexity.windows",
    "bits/w": "metrics.size.bits_per_weight", "model bytes": "metrics.size.model_nbytes",
    "decode ratio": "metrics.latency.decode.ratio", "quantize s": "metrics.compression.seconds_quantize", "reason": "reason",
}  # fmt: skip
"""Heading → column of `record.load`."""
QUALITY = {
    "run": "run_id", "name": "name", "model": "identity.model.name", "text": "identity.text.name", "bits/w": "metrics.size.bits_per_weight",
    "perplexity": "metrics.perplexity.value", "KL": "metrics.perplexity.kl", "flips": "metrics.perplexity.flip_rate",
}  # fmt: skip
"""The same, of what stands beside a comparison."""


def overview(rows: pd.DataFrame, columns: Mapping[str, str] = COLUMNS) -> pd.DataFrame:
    """The columns a person looks at first; those no row has are left out."""
    present = {heading: rows[column] for heading, column in columns.items() if column in rows}
    return pd.DataFrame(present).dropna(axis="columns", how="all")


def as_table(frame: pd.DataFrame) -> Table:
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, dtype in frame.dtypes.items():
        view.add_column(str(heading), justify="right" if pd.api.types.is_numeric_dtype(dtype) else "left")
    for values in frame.itertuples(index=False):
        view.add_row(
            *(
                "–" if pd.isna(value) else f"{value:.5g}" if isinstance(value, float) else str(value)
                for value in values
            )
        )
    return view
