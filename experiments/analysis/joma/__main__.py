"""Check JoMA's theory (arXiv 2310.00535) by numbers: invariants, laws, the curve of the entropy.

    python -m experiments.analysis.joma
    python -m experiments.analysis.joma --seeds 5 --out joma.json
    python -m experiments.analysis.joma --out joma.csv

Takes seconds, and reads no model. `.json` has the tables and the curve of the entropy, `.csv` a line for each
number of the tables.
"""

import argparse
import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

from experiments.analysis.joma import study
from experiments.analysis.joma.study import Entry
from experiments.common import fitted
from experiments.common.console import console
from experiments.common.errors import run_cli
from experiments.common.files import atomic_write
from experiments.common.fitted import Column

TITLES = {
    "invariants": "Invariants: largest drift of any token, while its Σ_k v_k² moves",
    "softmax": "Softmax attention (approximate): correlation of the change of z with the relation's",
    "laws": "Laws with attention integrated out",
    "entropy": "Entropy of attention in the toy, nats",
}
SUFFIXES = (".json", ".csv")
MOST_SEEDS = 100


def main() -> None:
    """Print the tables, and write them where `--out` is given.

    Raises:
        ValueError: a file of another type, or no number of seeds.
    """
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.analysis.joma", description=__doc__, formatter_class=how
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="draws averaged for softmax attention; default: 3"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="a .json or .csv file to write, too")
    options = parser.parse_args()
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds {options.seeds} is not possible; it must be from 1 to {MOST_SEEDS}")
    if options.out is not None and options.out.suffix not in SUFFIXES:
        raise ValueError(f"--out {options.out} is of no known type; give a name that ends in .json or .csv")
    found = study.entries(options.seeds)
    for name, title in TITLES.items():
        _print(title, [entry for entry in found if entry.study == name])
    if options.out is not None:
        with atomic_write(options.out) as file:
            file.write((_json if options.out.suffix == ".json" else _csv)(found).encode())


def _print(title: str, lines: list[Entry]) -> None:
    columns = [Column("", tuple(entry.case for entry in lines))]
    for name in lines[0].values:
        columns.append(Column(name, tuple(_word(entry.values[name]) for entry in lines), right=True))
    console.print()
    fitted.show(console, columns, title)


def _word(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.0f}" if value >= 100 else f"{value:.4f}"


def _json(found: list[Entry]) -> str:
    return json.dumps(
        {"tables": [asdict(entry) for entry in found], "entropy_curve": study.curve()}, indent=1
    )


def _csv(found: list[Entry]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("study", "case", "quantity", "value"))
    for entry in found:
        lines.writerows((entry.study, entry.case, name, value) for name, value in entry.values.items())
    return text.getvalue()


if __name__ == "__main__":
    run_cli(main)
