"""Instantiate the parts of a run from their configurations, and only from classes of the expected kind.

Hydra calls whatever `_target_` names. Here the target of a part must name a dataclass of the part's kind, and
a target inside a part must name a dataclass. So `logger._target_=builtins.print` is refused, not called. The
same holds for a class from outside the project (its YAML in a folder given by `--config-dir`). The check
imports the class's module; code that the import runs is not prevented here.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.data.text import Text
from experiments.evaluation import Evaluation
from experiments.models.source import ModelSource
from experiments.runs.calibration import CalibrationSource
from experiments.runs.logger import Logger
from experiments.runs.search import NoSearch, Search
from sinq import ActivationFormat, KeyValueFormat, Layers, Method
from sinq.common.options import shown

KINDS: dict[str, tuple[type, ...]] = {
    "model": (ModelSource,),
    "text": (Text,),
    "method": (Method,),
    "activation": (ActivationFormat,),
    "kv": (KeyValueFormat,),
    "calibration": (CalibrationSource,),
    "layers": (Layers,),
    "evaluation": (Evaluation,),
    "logger": (Logger,),
    "sweep": (NoSearch, Search),
}
"""Part → accepted classes; `evaluation` has them for each entry."""


def instantiated(config: DictConfig, name: str) -> Any:
    """Return the part of a configuration with that name, instantiated.

    Raises:
        ValueError: a `_target_` is no class of the expected kind; the message names it and the accepted
            classes.
        InstantiationException: a value is invalid.
    """
    made = _made(_Part(name, repr(OmegaConf.to_container(config[name], resolve=True)), config[name]))
    return dict(made) if isinstance(made, dict) else made


@dataclass(frozen=True)
class _Part:
    """A part of a configuration, known by its resolved content."""

    name: str
    content: str
    config: Any = field(compare=False)


@lru_cache(maxsize=256)
def _made(part: _Part) -> Any:
    """Return the part, instantiated; it never changes, so that the runs of a sweep share it."""
    node = OmegaConf.to_container(part.config, resolve=True)
    _check_parts(node, part.name)
    _check_targets(node, part.name, KINDS[part.name])
    return instantiate(part.config, _convert_="all")


def _check_parts(node: Any, name: str) -> None:
    """Refuse a part that is no group of options of a class."""
    parts = {name: node}
    if name == "evaluation" and isinstance(node, Mapping):
        parts = {f"{name}.{key}": value for key, value in node.items()}
    for path, value in parts.items():
        if not isinstance(value, Mapping) or "_target_" not in value:
            remove = f"; to leave it out, write ~{path}" if path != name else ""
            wanted = " or ".join(kind.__name__ for kind in KINDS[name])
            raise ValueError(
                f"{path}={shown(value)} is not possible; it must be the options of a {wanted},"
                f" as a file of conf/{name} has them{remove}"
            )


def _check_targets(node: Any, path: str, kinds: tuple[type, ...]) -> None:
    """Refuse wrong targets in a node and below it; the outermost targets must be of these kinds."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            _check_targets(child, f"{path}[{index}]", kinds)
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_target(str(node["_target_"]), f"{path}._target_", kinds)
        kinds = (object,)
    for key, child in node.items():
        _check_targets(child, f"{path}.{key}", kinds)


def _check_target(target: str, path: str, kinds: tuple[type, ...]) -> None:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: empty module name
        raise ValueError(f"{path}={target} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, kinds) and dataclasses.is_dataclass(found)):
        wanted = "" if kinds == (object,) else f" that is a {' or '.join(kind.__name__ for kind in kinds)}"
        raise ValueError(f"{path}={target} is not possible; it must name a dataclass{wanted}")
