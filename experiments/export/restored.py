"""A configuration that Hydra can build a run from, restored from a row.

A row names each class by its short name under `schema`, and holds enums by name, so that it reads the same
after the code has moved. Here names are looked up among the classes that a configuration can have, starting
from the parts of a run; nothing in a row chooses what is imported.
"""

import dataclasses
import enum
import typing
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.common.paths import data_dir
from experiments.config.build import PARTS, Config, method_classes, register
from experiments.results.record import Row
from sinq import Layers

SCHEMA, TARGET = "schema", "_target_"


def restored(row: Row) -> DictConfig:
    """Return the configuration of a row, with all references resolved.

    Raises:
        ValueError: it has a class that is not known, or none.
    """
    if not row.get("config"):
        raise ValueError(f"{row['run_id']} was not run from a configuration; export the model from Python")
    register()
    hydra = {"runtime": {"choices": row["choices"]}, "overrides": {"task": []}}
    plain = OmegaConf.to_container(OmegaConf.create(row["config"]), resolve=True)
    return OmegaConf.create({**_options(plain, Config), "hydra": hydra})


def _options(options: Any, kind: Any) -> dict[str, Any]:
    """Return options with classes and enums in place of their names, as the fields of a dataclass say."""
    hints = typing.get_type_hints(kind)
    return {name: _value(value, hints.get(name)) for name, value in options.items()}


def _value(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return [_value(item, hint) for item in value]
    if isinstance(value, dict):
        return _part(value)
    if not isinstance(value, str):
        return value
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind[value]
    return value.replace("$SINQ_DATA", str(data_dir()))


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a class with its path; several parts by name are given back so."""
    if SCHEMA not in part:
        return {name: _value(value, None) for name, value in part.items()}
    name = part[SCHEMA]
    if name not in _classes():
        raise ValueError(f"the row has a {name}, which is no part of a configuration here")
    kind = _classes()[name]
    options = {key: value for key, value in part.items() if key != SCHEMA}
    return {TARGET: f"{kind.__module__}.{kind.__qualname__}", **_options(options, kind)}


@cache
def _classes() -> dict[str, type]:
    """Return every dataclass that a configuration can have, by its short name."""
    known: dict[str, type] = {}
    waiting: list[Any] = [*PARTS, *method_classes(), Layers]
    while waiting:
        found = waiting.pop()
        if found.__name__ not in known:
            known[found.__name__] = found
            hints = typing.get_type_hints(found).values()
            kinds = [kind for hint in hints for kind in (hint, *typing.get_args(hint))]
            waiting += [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    return known
