"""All rows of a results folder as one table: `python -m experiments.results [folder]` prints it and writes `results.parquet` there."""

import argparse
from pathlib import Path

import pandas as pd
from rich.table import Table

from experiments import record
from experiments.console import console
from experiments.mistakes import guard

COLUMNS = {
    "run": "run_id", "name": "name", "model": "identity.model.name", "text": "identity.text.name", "status": "status",
    "perplexity": "metrics.perplexity.value", "dense": "metrics.perplexity.dense", "windows": "metrics.perplexity.windows",
    "bits/weight": "metrics.size.bits_per_weight", "model bytes": "metrics.size.model_nbytes",
    "decode ratio": "metrics.latency.decode.ratio", "quantize s": "metrics.compression.seconds_quantize", "reason": "reason",
}  # fmt: skip
"""Heading → column of `record.load`."""


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns a person looks at first; those no row has are left out."""
    present = {heading: rows[column] for heading, column in COLUMNS.items() if column in rows}
    return pd.DataFrame(present).dropna(axis="columns", how="all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results_dir", nargs="?", default="results", type=Path, help="default: results")
    results_dir: Path = parser.parse_args().results_dir
    rows = record.load(results_dir)
    for name in rows.attrs["unreadable"]:
        console.print(f"cannot be read: {results_dir / 'runs' / name}", markup=False, soft_wrap=True)
    if rows.empty:
        raise ValueError(f"{results_dir / 'runs'} has no rows; make some with python run.py results_dir={results_dir}")
    console.print(_as_table(overview(rows)))
    file = results_dir / "results.parquet"
    rows.to_parquet(file)
    console.print(f"{len(rows)} rows, all columns: {file}", soft_wrap=True)


def _as_table(frame: pd.DataFrame) -> Table:
    view = Table()
    for heading, dtype in frame.dtypes.items():
        view.add_column(str(heading), justify="right" if pd.api.types.is_numeric_dtype(dtype) else "left")
    for values in frame.itertuples(index=False):
        view.add_row(*("–" if pd.isna(value) else f"{value:.6g}" if isinstance(value, float) else str(value) for value in values))
    return view


if __name__ == "__main__":
    guard(main)
