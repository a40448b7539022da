"""Render a table of `conf/tables/` from the rows of a results folder; nothing is run.

python -m experiments.tables smollm2
python -m experiments.tables table1 --results results --format latex > table1.tex
python -m experiments.tables table1 --where identity.device=cuda     of rows alike, only those with this value
"""

import argparse
from pathlib import Path

from experiments.mistakes import guard
from experiments.tables import spec
from experiments.tables.formats import Format
from experiments.tables.show import show


def main() -> None:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=__doc__, formatter_class=how)
    parser.add_argument("table", help=f"one of {', '.join(spec.names())}")
    parser.add_argument("--results", default="results", type=Path, help="folder of the rows; default: results")
    parser.add_argument("--format", default="terminal", choices=[each.value for each in Format])
    parser.add_argument("--where", action="append", default=[], metavar="PLACE=VALUE", help="look only at rows that have this value there")
    options = parser.parse_args()
    show(options.table, options.results, Format(options.format), options.where)


if __name__ == "__main__":
    guard(main)
