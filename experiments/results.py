"""All rows of a results folder as one table, printed, and written with all columns as a Parquet file.

    python -m experiments.results
    python -m experiments.results --results other/folder --against sinq --out rows.parquet

`--against` compares every row with one of the same protocol (`compare.py`): a run id or a row's name means that row; a method's name means
the row of that method with as many bits and the same group size. Rows without such a counterpart show –.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table

from experiments import record
from experiments.compare import Comparison
from experiments.console import console
from experiments.counterpart import compared
from experiments.mistakes import guard

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


def beside(view: pd.DataFrame, comparisons: list[Comparison | None], name: str) -> pd.DataFrame:
    """An overview with the comparisons as columns."""
    cells = {
        f"ΔNLL to {name}": [None if c is None else f"{c.delta_nll:+.4f}" for c in comparisons],
        "95 %": [None if c is None else f"{c.low:+.4f} … {c.high:+.4f}" for c in comparisons],
        "verdict": [None if c is None else c.verdict.value for c in comparisons],
    }
    return pd.concat([view, pd.DataFrame(cells, index=view.index)], axis="columns")


def main() -> None:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results", description=__doc__, formatter_class=how
    )
    parser.add_argument("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="all columns, as Parquet; default: <results>/results.parquet"
    )
    parser.add_argument("--against", metavar="NAME", help="a method's name, a row's name, or a run id")
    options = parser.parse_args()
    results_dir: Path = options.results
    rows, unreadable = record.read(results_dir)
    for name, reason in unreadable.items():
        console.print(
            f"cannot be read: {results_dir / 'runs' / name}: {reason}", markup=False, soft_wrap=True
        )
    if not rows:
        raise ValueError(
            f"{results_dir / 'runs'} has no rows; make some with python run.py results_dir={results_dir}"
        )
    columns = record.tabulate(rows)
    view = overview(columns)
    if options.against:
        view = beside(overview(columns, QUALITY), compared(rows, options.against), options.against)
    console.print(_as_table(view))
    file = options.out or results_dir / "results.parquet"
    columns.to_parquet(file)
    console.print(f"{len(rows)} rows, all columns: {file}", soft_wrap=True)


def _as_table(frame: pd.DataFrame) -> Table:
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


if __name__ == "__main__":
    guard(main)
