"""The command `sinq-harness` (in a checkout, `python run.py`): run one experiment, or with `-m` a sweep.

Imports are where they are needed: `--help` imports no torch, a typo neither transformers nor pandas, and
Ctrl-C is a line from the first import on.
"""

import sys

from experiments.common import interrupts


def main() -> None:
    """Run the command line; a user error ends the process with one line and exit status 1."""
    interrupts.end_at_once()
    from experiments.common import usage

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
    _hydra()


def _hydra() -> None:
    import hydra
    from omegaconf import DictConfig

    from experiments.common.paths import conf_dir

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg: DictConfig) -> None:
        from experiments.sweeps import jobs

        jobs.job(cfg)

    job()
