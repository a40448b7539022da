"""Experiments: sweeps as data, `conf/experiment/<name>.yaml`.

`python run.py experiment=<name>` makes the missing runs and prints the table.

An experiment is a list of grids. A grid is a set of options, in which a list stands for one run per element:

    table: bits
    experiment:
      runs:
        - {method: none}
        - {method: [rtn, sinq], bits: [2, 3, 4]}
        - {method: gptq, calibration: wikitext2, bits: [3, 4]}

An experiment with a table and without runs makes the runs that the table's cells lack. So `python run.py
experiment=paper table=<name>` fills any table of `conf/tables/`. Options of the command line are added to
every run, and override the experiment's.
"""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config import options
from experiments.config.build import results_folder
from experiments.results import record
from experiments.tables import cells, spec


def grids(config: DictConfig, arguments: Sequence[str]) -> list[list[str]]:
    """Return the arguments of every grid of a sweep; those of the command line come last and override.

    Raises:
        ValueError: the table is not named or does not exist, or several rows match one of its cells.
    """
    table = _table(config)
    experiment: Any = OmegaConf.to_object(config.experiment)
    if experiment.runs:
        return [[*options.sweep(run), *arguments] for run in experiment.runs]
    if table is None:
        return [list(arguments)]
    return [[*options.overrides(run), *arguments] for run in _lacking(table, config)]


def _table(config: DictConfig) -> spec.Table | None:
    if config.table == "":
        raise ValueError(f"table is missing; give table=<name>, one of {', '.join(spec.names())}")
    return None if config.table is None else spec.load(config.table)


def _lacking(table: spec.Table, config: DictConfig) -> list[dict[str, Any]]:
    """Return the options of runs that the table's cells lack; of all its runs where `force` is set."""
    rows = [] if config.force else record.read(results_folder(config))[0]
    return cells.missing(table, rows)
