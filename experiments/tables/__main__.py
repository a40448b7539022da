"""Render a table of `conf/tables/` from the rows of a results folder.

    python -m experiments.tables smollm2
    python -m experiments.tables table1 --format latex --out table1.tex
    python -m experiments.tables table1 --where identity.device=cuda    if several runs match a cell

Nothing is run: a cell without a run shows the command that makes it.
"""

import argparse
from pathlib import Path

from experiments.common.errors import run_cli
from experiments.tables import spec
from experiments.tables.formats import Format
from experiments.tables.show import show, write


def main() -> None:
    """Print the table, or write it to a file where `--out` is given."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tables", description=__doc__, formatter_class=how
    )
    parser.add_argument("table", help=f"one of {', '.join(spec.names())}")
    parser.add_argument("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: print it")
    parser.add_argument("--format", default="terminal", choices=[each.value for each in Format])
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PLACE=VALUE",
        help="look only at rows that have this value there",
    )
    options = parser.parse_args()
    if options.out is None:
        show(options.table, options.results, Format(options.format), options.where)
    else:
        write(options.table, options.results, Format(options.format), options.where, options.out)


if __name__ == "__main__":
    run_cli(main)
