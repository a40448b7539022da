"""All rows of a results folder as one table, printed, and written with all columns as a Parquet file.

    python -m experiments.results
    python -m experiments.results --results other/folder --against sinq --out rows.parquet

`--against` compares every row with a row of the same protocol (`experiments/compare/paired.py`). A run id or
a row's name selects that row; a method's name selects the row of that method with as many bits and the same
group size. Rows without such a counterpart show –.
"""

import argparse
from pathlib import Path

from experiments.common.console import console
from experiments.common.errors import run_cli
from experiments.compare.counterpart import beside, compared
from experiments.results import record
from experiments.results.listing import QUALITY, as_table, overview


def main() -> None:
    """Print the table of rows and write the Parquet file.

    Raises:
        ValueError: the folder has no rows, or `--against` names none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    console.print(as_table(view))
    file = options.out or results_dir / "results.parquet"
    columns.to_parquet(file)
    console.print(f"{len(rows)} rows, all columns: {file}", soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
