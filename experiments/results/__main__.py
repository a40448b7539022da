"""All rows of a results folder as one table, printed, and written with all columns as a Parquet file.

    python -m experiments.results
    python -m experiments.results --results other/folder --against sinq --out rows.parquet
    python -m experiments.results --where method=sinq,bits=3 --sort perplexity
    python -m experiments.results --columns name,bits,perplexity,decode --format markdown

In a terminal that is too narrow, the least important columns are left out, and named; numbers and ids are
never cut. `--against` compares every row with a row of the same protocol (`experiments/compare/paired.py`). A
run id or a row's name selects that row; a method's name selects the row of that method with as many bits and
the same group size. Rows without such a counterpart show –.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common import fitted
from experiments.common.console import console
from experiments.common.errors import run_cli
from experiments.common.files import atomic_write
from experiments.common.fitted import Column
from experiments.compare.counterpart import Counterparts, compared
from experiments.compare.query import matching
from experiments.results import frame, listing, record, written
from experiments.results.record import Row


def main() -> None:
    """Print the table of rows and write the Parquet file.

    Raises:
        ValueError: the folder has no rows, or an option names none, or no column.
    """
    options = _parse()
    results_dir: Path = options.results
    rows, unreadable = record.read(results_dir)
    for name, reason in unreadable.items():
        _say(f"cannot be read: {results_dir / 'runs' / name}: {reason}", options.format)
    if not rows:
        raise ValueError(
            f"{results_dir / 'runs'} has no rows; make some with python run.py results_dir={results_dir}"
        )
    shown = rows
    for query in options.where:
        shown = matching(shown, query)
    shown = listing.arranged(shown, options.sort, options.falling)
    against = compared(shown, options.against) if options.against else None
    keys = None if options.columns is None else [key.strip() for key in options.columns.split(",")]
    if options.format == "csv":
        sys.stdout.write(_csv(shown, keys, against))
    else:
        columns = [*listing.chosen(shown, keys), *(against.columns() if against else ())]
        _print(shown, columns, options.format, keys is None)
    for line in (*listing.failures(shown), *(against.notes if against else ())):
        _say(line, options.format)
    file = options.out or results_dir / "results.parquet"
    with record.writing(file.parent), atomic_write(file) as out:
        frame.write(frame.tabulate(rows), out)
    _say(f"{len(rows)} rows, all columns: {file}", options.format)


def _csv(rows: Sequence[Row], keys: Sequence[str] | None, against: Counterparts | None) -> str:
    """Return the columns with their values in full; all flat columns where no keys are given."""
    names = keys if keys is not None else listing.keys(rows)
    values = {name: listing.raw(rows, name) for name in names}
    return written.as_csv(values | ({} if against is None else against.values()))


def _print(rows: Sequence[Row], columns: Sequence[Column], form: str, usual: bool) -> None:
    """Print the table in a format other than CSV.

    Args:
        usual: a line above the table has what is the same in all rows.
    """
    if form == "terminal":
        constant = listing.constants(rows).items() if usual else ()
        title = ", ".join(f"{key} {value}" for key, value in constant)
        fitted.show(console, columns, title, "choose with --columns, or --format markdown for all")
    else:
        sys.stdout.write({"markdown": written.markdown, "latex": written.latex}[form](columns))


def _say(line: str, form: str = "terminal") -> None:
    """Print a line beside the table; to stderr where the table is for another program."""
    if form == "terminal":
        console.print(line, soft_wrap=True)
    else:
        print(line, file=sys.stderr)


def _parse() -> argparse.Namespace:
    keys = ", ".join(listing.KEYS)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    add(
        "--out", metavar="FILE", type=Path, help="all columns, as Parquet; default: <results>/results.parquet"
    )
    add("--against", metavar="NAME", help="a method's name, a row's name, or a run id")
    add(
        "--where",
        metavar="QUERY",
        action="append",
        default=[],
        help="only these rows: method=sinq,bits=4; may be repeated",
    )
    add("--sort", metavar="COLUMN", help="default: by model, text, method, bits")
    add("--falling", action="store_true", help="with --sort: the largest first")
    add("--columns", metavar="KEYS", help=f"comma-separated, of {keys}, tasks, and the data frame's columns")
    add("--format", choices=written.FORMATS, default="terminal", help="default: terminal")
    return parser.parse_args()


if __name__ == "__main__":
    run_cli(main)
