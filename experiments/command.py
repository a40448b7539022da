"""The command `sinq-harness` (in a checkout, `python run.py`): run one experiment, or with `-m` a sweep.

Imports are where they are needed: `--help` imports no torch, and a typo neither transformers nor pandas.
"""

import sys

import hydra
from omegaconf import DictConfig

from experiments.common import usage
from experiments.common.paths import conf_dir


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _job(cfg: DictConfig) -> None:
    from experiments.sweeps import jobs

    jobs.job(cfg)


def main() -> None:
    """Run the command line; a user error ends the process with one line and exit status 1."""
    if usage.is_wanted(sys.argv[1:]):
        print(usage.text(sys.argv[1:]))
        return
    from experiments import config
    from experiments.common import errors

    config.register()
    errors.run_cli(_checked)


def _checked() -> None:
    from experiments.common.arguments import check_arguments, of_each_run

    check_arguments(sys.argv[1:])
    sys.argv[1:] = of_each_run(sys.argv[1:])
    _job()
