"""The command `sinq-harness` (in a checkout, `python run.py`): run one experiment, or with `-m` a sweep."""

import sys

import hydra
from omegaconf import DictConfig

from experiments import config
from experiments.common import console, errors
from experiments.common.arguments import check_arguments
from experiments.common.paths import conf_dir
from experiments.sweeps import jobs


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _job(cfg: DictConfig) -> None:
    jobs.job(cfg)


def main() -> None:
    """Run the command line; a user error ends the process with one line and exit status 1."""
    console.set_up()
    config.register()
    errors.run_cli(_checked)


def _checked() -> None:
    check_arguments(sys.argv[1:])
    _job()
