"""The command `sinq-harness` (in a checkout, `python run.py`): run one experiment, or with `-m` a sweep."""

import hydra
from omegaconf import DictConfig

from experiments import config, console, mistakes, sweep
from experiments.cache import conf_dir


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _job(cfg: DictConfig) -> None:
    sweep.job(cfg)


def main() -> None:
    """Run the command line; a mistake ends the process with one line and exit status 1."""
    console.set_up()
    config.register()
    mistakes.guard(_job)
