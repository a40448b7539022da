"""Correlate attention entropy and stable rank of the dense model with the output errors of a compressed one.

    python run.py method=sinq bits=3 text=wikitext2 evaluation=layers
    python -m experiments.analysis.predictors method=sinq,bits=3
    python -m experiments.analysis.predictors 904a --results other/folder --out predictors.csv

Spearman's rank correlations over layers, by kind of layer. `--out` writes the table of layers (.csv) or, with
the correlations, all of it (.json).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from experiments.analysis.predictors.ranking import DEPTH, PREDICTORS, Correlation, correlations, layer_table
from experiments.common import fitted
from experiments.common.console import console
from experiments.common.errors import run_cli
from experiments.common.files import atomic_write
from experiments.common.fitted import Column
from experiments.compare.query import select
from experiments.results import record
from experiments.results.columns import ABSENT
from experiments.results.names import method_names, subject
from experiments.results.record import Row

SUFFIXES = (".json", ".csv")


def main() -> None:
    """Print the correlations, and write them where `--out` is given.

    Raises:
        ValueError: the words name no run, a dense one, or one without these measurements.
    """
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.analysis.predictors", description=__doc__, formatter_class=how
    )
    parser.add_argument("run", help="a run's id, or its beginning; its name; or a query: method=sinq,bits=3")
    parser.add_argument("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    parser.add_argument("--out", metavar="FILE", type=Path, help="a .json or .csv file to write, too")
    options = parser.parse_args()
    if options.out is not None and options.out.suffix not in SUFFIXES:
        raise ValueError(f"--out {options.out} is of no known type; give a name that ends in .json or .csv")
    rows, unreadable = record.read(options.results)
    for name, reason in unreadable.items():
        console.print(f"cannot be read: {options.results / 'runs' / name}: {reason}", soft_wrap=True)
    row, note = select(rows, options.run)
    if note:
        console.print(note, soft_wrap=True)
    table = layer_table(row, dense_of(row, rows))
    found = correlations(table)
    _show(row, found)
    if options.out is not None:
        with atomic_write(options.out) as file:
            file.write((_json(table, found) if options.out.suffix == ".json" else table.to_csv()).encode())


def dense_of(row: Row, rows: Sequence[Row]) -> Row:
    """Return the row of the dense model that a run was measured against.

    Raises:
        ValueError: the run is dense itself, or its dense row is not there.
    """
    wanted = row.get("dense_run_id")
    if wanted is None:
        raise ValueError(
            f"run {row['run_id']} is of the dense model, which has no errors; name a compressed one"
        )
    dense = next((other for other in rows if other["run_id"] == wanted), None)
    if dense is None:
        raise ValueError(f"run {row['run_id']} was measured against {wanted}, which is not in this folder")
    return dense


def _show(row: Row, found: Sequence[Correlation]) -> None:
    """Print a line for each kind of layers, a column for each predictor."""
    kinds = list(dict.fromkeys(each.layers for each in found))
    cells = {(each.predictor, each.layers): each for each in found}
    counts = tuple(str(cells[PREDICTORS[0], kind].count) for kind in kinds)
    columns = [Column("", tuple(kinds)), Column("layers", counts, right=True)]
    for predictor in PREDICTORS:
        words = tuple(_word(cells[predictor, kind]) for kind in kinds)
        columns.append(Column(f"{predictor.replace('_', ' ')}\nρ (95 %)", words, right=True))
        left = [cells[predictor, kind].given_depth for kind in kinds]
        if predictor != DEPTH:
            words = tuple(ABSENT if each is None else f"{each:+.2f}" for each in left)
            columns.append(Column("given\ndepth", words, right=True))
    title = f"{method_names([row])[0]}, {subject(row)}: rank correlation with the output error"
    fitted.show(console, columns, title)


def _word(each: Correlation) -> str:
    ends = "" if each.interval is None else f" ({each.interval[0]:+.2f} … {each.interval[1]:+.2f})"
    return f"{each.rho:+.2f}{ends}"


def _json(table: pd.DataFrame, found: Sequence[Correlation]) -> str:
    layers = table.to_dict("index")
    return json.dumps({"correlations": [asdict(each) for each in found], "layers": layers}, indent=1)


if __name__ == "__main__":
    run_cli(main)
