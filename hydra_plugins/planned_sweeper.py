"""Hydra's sweeper with a plan, for one grid of options or the grids of an experiment.

Experiments are explained in `experiments/sweeps/experiment.py`. Hydra takes sweepers only from a package
named `hydra_plugins`. Hydra's basic sweeper expands options to a grid, and a launcher runs the jobs. Between
the two, this sweeper orders the options so that runs that share a model or a text follow each other, and
calls `experiments/sweeps/jobs.py`, which plans and launches.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser


class PlannedSweeper(BasicSweeper):
    """Sweeper of `python run.py -m …` and `python run.py experiment=…`."""

    def sweep(self, arguments: list[str]) -> None:
        """Run every job of the grids that Hydra's arguments describe, each once."""
        from experiments.sweeps import jobs  # Hydra imports this module for `--help` too
        from experiments.sweeps.composing import Composer
        from experiments.sweeps.experiment import grids

        assert self.hydra_context is not None  # Hydra has called setup
        assert self.config is not None
        assert self.launcher is not None
        loader, config, launcher = self.hydra_context.config_loader, self.config, self.launcher
        parser = OverridesParser.create(config_loader=loader)
        planned: dict[tuple[str, ...], None] = {}  # a set that keeps the order
        launched = 0
        for grid in grids(config, [*self._parse_config(), *arguments]):
            (batch,) = self.split_arguments(jobs.ordered(parser.parse_overrides(grid)), None)
            if len(planned) + len(batch) > jobs.LARGEST:
                raise ValueError(
                    f"a sweep of {len(batch)} runs is too long to plan; it must be {jobs.LARGEST} at most:"
                    " give fewer values"
                )
            planned |= dict.fromkeys(map(tuple, batch))

        def launch(chosen: Sequence[Sequence[str]]) -> None:
            nonlocal launched
            results: Sequence[Any] = launcher.launch(chosen, initial_job_idx=launched) if chosen else []
            launched += len(chosen)
            for result in results:
                _ = result.return_value  # raises an exception that a job did not catch

        jobs.run(list(planned), map(Composer(loader, config), planned), config, launch)
