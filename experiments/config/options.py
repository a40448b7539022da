"""Options as data: `{method: sinq, bits: 4}`, as arguments of a command line and as the run they describe."""

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
"""Options that say what is measured, on what; the others say what is done to the model."""


def overrides(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Arguments in Hydra's grammar; `~name` leaves a part out."""
    return tuple(key if key.startswith("~") else f"{key}={_value(value)}" for key, value in options.items())


def sweep(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The same, where a list means: each of these in turn."""
    lists = {
        key: ",".join(_value(each) for each in value)
        for key, value in options.items()
        if isinstance(value, list)
    }
    return overrides({**options, **lists})


def command(options: Mapping[str, Any]) -> str:
    """What a person types to make the run."""
    return shlex.join(["python", "run.py", *overrides(options)])


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(_value(each) for each in value)}]" if isinstance(value, list) else str(value)


def split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is measured, and what is done to it. The two do not depend on each other, so each is composed once for a whole table."""
    subject = {key: value for key, value in options.items() if _group(key) in SUBJECT}
    return subject, {key: value for key, value in options.items() if key not in subject}


def _group(key: str) -> str:
    return key.lstrip("+~").split(".")[0].split("@")[-1].split("/")[0]


@lru_cache(maxsize=512)
def run_of(arguments: tuple[str, ...]) -> Run:
    """The run that arguments describe, on top of the defaults; nothing is loaded.

    Raises:
        HydraException, ValueError: as `run.py` would.
    """
    config.register()
    if GlobalHydra.instance().is_initialized():  # inside run.py
        return config.build(compose("config", list(arguments), return_hydra_config=True))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return config.build(compose("config", list(arguments), return_hydra_config=True))
