"""Print drop and rebound of attention entropy and of stable rank over trainings.

    python run.py -m model=joma1 model.step=0,250,500,1000,2000,5000 method=none evaluation=trajectory
    python -m experiments.analysis.trajectories
    python -m experiments.analysis.trajectories --results other/folder --out trajectories.csv

Checkpoints of the hub count too, if their revisions end in step and a number, as Pythia's do. `--out` writes
a line for each layer (.csv, .json).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from experiments.analysis.trajectories.bounces import ENTROPY, RANK, Line, lines
from experiments.common import fitted
from experiments.common.console import console
from experiments.common.errors import run_cli
from experiments.common.files import atomic_write
from experiments.common.fitted import Column
from experiments.results import record
from experiments.results.columns import ABSENT
from experiments.results.trajectories import FEWEST, trajectories

QUANTITIES = {ENTROPY: "Entropy of attention, nats", RANK: "Stable rank of the MLP's lower matrices"}
SUFFIXES = (".json", ".csv")


def main() -> None:
    """Print a table for each quantity, and write both where `--out` is given.

    Raises:
        ValueError: no training has enough steps with one of these measurements.
    """
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.analysis.trajectories", description=__doc__, formatter_class=how
    )
    parser.add_argument("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    parser.add_argument("--out", metavar="FILE", type=Path, help="a .json or .csv file to write, too")
    options = parser.parse_args()
    if options.out is not None and options.out.suffix not in SUFFIXES:
        raise ValueError(f"--out {options.out} is of no known type; give a name that ends in .json or .csv")
    rows, unreadable = record.read(options.results)
    for name, reason in unreadable.items():
        console.print(f"cannot be read: {options.results / 'runs' / name}: {reason}", soft_wrap=True)
    found = {path: lines(trajectories(rows), path) for path in QUANTITIES}
    if not any(found.values()):
        raise ValueError(
            f"{options.results} has no training with {FEWEST} steps or more; measure some with python run.py"
            " -m model=decoder1 model.step=0,250,500,1000 method=none evaluation=trajectory"
        )
    for path, title in QUANTITIES.items():
        if found[path]:
            _show(found[path], title)
    if options.out is not None:
        with atomic_write(options.out) as file:
            file.write((_json if options.out.suffix == ".json" else _csv)(found).encode())


def _show(found: Sequence[Line], title: str) -> None:
    columns = [Column("training", tuple(each.training for each in found))]
    columns.append(Column("layer", tuple(each.layer for each in found)))
    for name in ("start", "minimum", "step", "end", "drop", "rebound"):
        words = tuple(f"{getattr(each, name):.{0 if name == 'step' else 2}f}" for each in found)
        columns.append(Column(name, words, right=True))
    spreads = tuple(ABSENT if each.spread is None else f"{each.spread:.2f}" for each in found)
    columns += [Column("± seeds", spreads, right=True), Column("", tuple(each.verdict for each in found))]
    console.print()
    fitted.show(console, columns, title)


def _table(found: dict[str, list[Line]]) -> list[dict[str, object]]:
    return [
        {"quantity": path.rpartition(".")[2], **asdict(line), "verdict": line.verdict}
        for path, each in found.items()
        for line in each
    ]


def _json(found: dict[str, list[Line]]) -> str:
    return json.dumps(_table(found), indent=1)


def _csv(found: dict[str, list[Line]]) -> str:
    return pd.DataFrame(_table(found)).to_csv(index=False)


if __name__ == "__main__":
    run_cli(main)
