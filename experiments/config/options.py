"""Options as data, such as `{method: sinq, bits: 4}`: their command-line arguments and their run."""

import shlex
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments import config
from experiments.common.paths import conf_dir
from experiments.runs.run import Run

SUBJECT = ("model", "text", "evaluation", "device")
"""Options of the measurement; the others are options of the compression."""


def overrides(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return options as arguments in Hydra's grammar; the key `~name` removes a part."""
    return tuple(key if key.startswith("~") else f"{key}={_value(value)}" for key, value in options.items())


def sweep(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return options as arguments of a sweep: a list stands for one run per element."""
    lists = {
        key: ",".join(_value(each) for each in value)
        for key, value in options.items()
        if isinstance(value, list)
    }
    return overrides({**options, **lists})


def command(options: Mapping[str, Any]) -> str:
    """Return the shell command that makes the run."""
    return shlex.join(["python", "run.py", *overrides(options)])


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(_value(each) for each in value)}]" if isinstance(value, list) else str(value)


def split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the measurement, and those of the compression.

    The two are independent, so a table composes each combination of either only once.
    """
    subject = {key: value for key, value in options.items() if _group(key) in SUBJECT}
    return subject, {key: value for key, value in options.items() if key not in subject}


def _group(key: str) -> str:
    return key.lstrip("+~").split(".")[0].split("@")[-1].split("/")[0]


@lru_cache(maxsize=512)
def run_of(arguments: tuple[str, ...]) -> Run:
    """Return the run that arguments describe on top of the defaults; no model or text is loaded.

    Raises:
        HydraException, ValueError: an argument is invalid, as in `run.py`.
    """
    config.register()
    if GlobalHydra.instance().is_initialized():  # inside run.py
        return config.build(compose("config", list(arguments), return_hydra_config=True))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return config.build(compose("config", list(arguments), return_hydra_config=True))
