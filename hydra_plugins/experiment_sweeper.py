"""Hydra's sweeper, for the several grids of an experiment. In this package because Hydra looks for sweepers nowhere else.

Hydra's own sweeper spans one grid. This one asks `experiments/experiment.py` for grids (for a plain `python run.py -m …`, that one) and
launches all their runs as one sweep.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.experiment import grids


class ExperimentSweeper(BasicSweeper):
    """`python run.py -m …` and `python run.py experiment=…`."""

    def sweep(self, arguments: list[str]) -> None:
        assert self.hydra_context is not None  # Hydra has called setup
        assert self.config is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs: list[list[str]] = []
        for grid in grids(self.config, arguments):
            (batch,) = self.split_arguments(parser.parse_overrides(grid), None)
            jobs += [job for job in batch if job not in jobs]
        self.validate_batch_is_legal(jobs)
        for result in self.launcher.launch(jobs, initial_job_idx=0) if jobs else []:
            _ = result.return_value  # raises what a job, against its habit, let through
