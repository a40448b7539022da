"""Train a transformer on texts from a tree of latents, and find the tree's levels in its layers.

    python -m experiments.analysis.latent_tree
    python -m experiments.analysis.latent_tree --steps 2000 --children 3 --seeds 3 --out tree.json

A seed takes about a minute on one core with 300 steps. The paper has 1,024 channels and 10,000 steps.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from experiments.analysis.latent_tree.learned import Learned, architecture, learned
from experiments.analysis.latent_tree.tree import Tree
from experiments.common import fitted
from experiments.common.console import bar, console
from experiments.common.errors import run_cli
from experiments.common.files import atomic_write
from experiments.common.fitted import Column
from sinq.training.schedule import Schedule
from sinq.training.trainer import Precision, Training

SUFFIX = ".json"


def main() -> None:
    """Print the table, and write it where `--out` is given.

    Raises:
        ValueError: an option is out of range, or the file is of another type.
    """
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.analysis.latent_tree", description=__doc__, formatter_class=how
    )
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="updates; default: 300")
    parser.add_argument("--width", type=int, default=128, metavar="N", help="channels; default: 128")
    parser.add_argument("--children", type=int, default=2, metavar="N", help="of a latent; default: 2")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trees and trainings; default: 1")
    parser.add_argument("--out", metavar="FILE", type=Path, help="a .json file to write, too")
    options = parser.parse_args()
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds} is not possible; it must be 1 or more")
    if options.out is not None and options.out.suffix != SUFFIX:
        raise ValueError(f"--out {options.out} is of no known type; give a name that ends in {SUFFIX}")
    transformer = architecture(width=options.width, neurons=4 * options.width)
    found = [
        learned(Tree(children=options.children, seed=seed), transformer, training(options.steps, seed), bar)
        for seed in range(options.seeds)
    ]
    _show(found)
    if options.out is not None:
        with atomic_write(options.out) as file:
            file.write(json.dumps([asdict(each) for each in found], indent=1).encode())


def training(steps: int, seed: int) -> Training:
    """Return the options of a training of these steps."""
    return Training(
        steps=steps, batch=64, at_once=64, learning_rate=1e-3, schedule=Schedule.constant,
        weight_decay=1e-4, precision=Precision.float32, seed=seed,
    )  # fmt: skip


def _show(found: Sequence[Learned]) -> None:
    rows = list(zip(*(each.levels for each in found), strict=True))
    columns = [
        Column("latents", tuple(each[0].level for each in rows)),
        Column("block", tuple(str(each[0].block) for each in rows), right=True),
        Column("untrained", tuple(f"{fmean(one.before for one in each):.2f}" for each in rows), right=True),
        Column("trained", tuple(f"{fmean(one.after for one in each):.2f}" for each in rows), right=True),
    ]
    accuracy = fmean(each.accuracy for each in found)
    title = f"Normalized correlation with the best hidden unit; {accuracy:.0%} of classes are told"
    fitted.show(console, columns, title)


if __name__ == "__main__":
    run_cli(main)
