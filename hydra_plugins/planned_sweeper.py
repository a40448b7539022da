"""Hydra's grid of options, or the several grids of an experiment (`experiment.py`), with a plan before them. It stands here because
Hydra takes sweepers from a package of this name only.

Hydra's own sweeper knows how options span a grid, and its launchers run jobs. Between the two, this one puts the options in an order in
which runs that share a model or a text follow each other, and hands over to `experiments/sweeps/jobs.py`, which plans and launches.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.sweeps import jobs
from experiments.sweeps.experiment import grids


class PlannedSweeper(BasicSweeper):
    """`python run.py -m …` and `python run.py experiment=…`."""

    def sweep(self, arguments: list[str]) -> None:
        assert self.hydra_context is not None  # Hydra has called setup
        assert self.config is not None
        assert self.launcher is not None
        loader, config, launcher = self.hydra_context.config_loader, self.config, self.launcher
        parser, begun, launched = OverridesParser.create(config_loader=loader), [], 0
        for grid in grids(config, [*self._parse_config(), *arguments]):
            (batch,) = self.split_arguments(jobs.ordered(parser.parse_overrides(grid)), None)
            begun += [list(job) for job in batch if job not in begun]

        def launch(chosen: Sequence[Sequence[str]]) -> None:
            nonlocal launched
            results: Sequence[Any] = launcher.launch(chosen, initial_job_idx=launched) if chosen else []
            launched += len(chosen)
            for result in results:
                _ = result.return_value  # raises what a job, against its habit, let through

        jobs.run([loader.load_sweep_config(config, job) for job in begun], config, launch)
