"""Run one experiment, or with -m a sweep: `python run.py method=sinq bits=3`. Options are in `conf/`."""

import hydra
from omegaconf import DictConfig

from experiments import config, console, mistakes, sweep

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    sweep.job(cfg)


if __name__ == "__main__":
    console.set_up()
    mistakes.guard(main)
