"""Instantiate the parts of a run from their configurations, and only from classes of the expected kind.

Hydra calls whatever `_target_` names. Here the target of a part must name a dataclass of the part's kind,
and a target inside it a dataclass, so `logger._target_=builtins.print` is a value that is refused, not a
call. A class from elsewhere (its YAML in a folder given by `--config-dir`) is held to the same. To tell
what it is, its module is imported; what that runs is not prevented here.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.data.text import Text
from experiments.evaluation import Evaluation
from experiments.models.source import ModelSource
from experiments.runs.calibration import CalibrationSource
from experiments.runs.logger import Logger
from experiments.runs.search import NoSearch, Search
from sinq import Layers, Method

KINDS: dict[str, tuple[type, ...]] = {
    "model": (ModelSource,),
    "text": (Text,),
    "method": (Method,),
    "calibration": (CalibrationSource,),
    "layers": (Layers,),
    "evaluation": (Evaluation,),
    "logger": (Logger,),
    "sweep": (NoSearch, Search),
}
"""Classes that a part is one of; of `evaluation`, each entry."""


def instantiated(config: DictConfig, name: str) -> Any:
    """The part of that name.

    Raises:
        ValueError: a `_target_` in it is no class of the expected kind; the message names it and what is.
        InstantiationException: a value of it is not possible.
    """
    _check_targets(OmegaConf.to_container(config[name], resolve=True), name, KINDS[name])
    return instantiate(config[name], _convert_="all")


def _check_targets(node: Any, place: str, kinds: tuple[type, ...]) -> None:
    """Refuse wrong targets in a node and below it; the outermost ones must be of these kinds."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            _check_targets(child, f"{place}[{index}]", kinds)
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_target(str(node["_target_"]), f"{place}._target_", kinds)
        kinds = (object,)
    for key, child in node.items():
        _check_targets(child, f"{place}.{key}", kinds)


def _check_target(target: str, place: str, kinds: tuple[type, ...]) -> None:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:  # of an empty module's name
        raise ValueError(f"{place}={target} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, kinds) and dataclasses.is_dataclass(found)):
        wanted = "" if kinds == (object,) else f" that is a {' or '.join(kind.__name__ for kind in kinds)}"
        raise ValueError(f"{place}={target} is not possible; it must name a dataclass{wanted}")
