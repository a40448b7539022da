"""Every number of every YAML file: a value that no option could have is refused when the object is made."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments.config.build import register
from experiments.config.instantiation import KINDS, instantiated
from tests.conftest import ROOT

VALUES: tuple[Any, ...] = (math.nan, math.inf, -math.inf, -1, 0, 1e30, 1.5, 10**12, 10**400, "abc", True, [1])
NEEDED = {
    **{("model", name): ["model.path=some/model"] for name in ("hub", "stories260k")},
    ("text", "file"): [f"text.path={__file__}"],
    ("calibration", "file"): [f"calibration.text.path={__file__}"],
}
NAMES = {
    group: sorted(file.stem for file in (ROOT / "conf" / group).glob("*.yaml"))
    for group in KINDS
    if (ROOT / "conf" / group).is_dir()
}
FILES = [(group, name) for group, names in NAMES.items() for name in names]
Path = tuple[str | int, ...]


@cache
def composed(number: int) -> Any:
    """A configuration with one file of each group, so that few are composed."""
    register()
    GlobalHydra.instance().clear()
    chosen = {group: names[number % len(names)] for group, names in NAMES.items()}
    words = [f"{group}={name}" for group, name in chosen.items()]
    words += [word for each in chosen.items() for word in NEEDED.get(each, [])]
    bits = {"sinq_nf3": 3, "mgptq": 2}.get(chosen["method"], 4)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [*words, f"bits={bits}"])


@cache
def part(group: str, name: str) -> Any:
    """The objects of a YAML file, as `run.py` makes them."""
    return instantiated(composed(NAMES[group].index(name)), group)


def numbers(value: Any, annotation: Any = None, path: Path = ()) -> Iterator[tuple[Path, tuple[type, ...]]]:
    """Path and accepted types of every number, also of those that are null, and of those in lists."""
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name), hints[field.name], (*path, field.name))
    elif isinstance(value, dict) and annotation is None:
        for key, item in value.items():
            yield from numbers(item, None, (*path, key))
    else:
        kinds = _kinds(annotation)
        if typing.get_origin(annotation) is tuple and kinds:
            yield from (((*path, index), kinds) for index in range(len(value)))
        elif kinds:
            yield path, kinds


def _kinds(annotation: Any) -> tuple[type, ...]:
    united = typing.get_origin(annotation) in (types.UnionType, typing.Union, tuple)
    kinds = typing.get_args(annotation) if united else (annotation,)
    return tuple({kind for kind in kinds if kind in (int, float)})


def changed(value: Any, path: Path, new: Any) -> Any:
    """The same objects, made anew with another number."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, tuple | list):
        return [changed(item, rest, new) if index == key else item for index, item in enumerate(value)]
    if isinstance(value, dict):
        return value | {key: changed(value[key], rest, new)}
    return dataclasses.replace(value, **{str(key): changed(getattr(value, str(key)), rest, new)})


@pytest.mark.parametrize(("group", "name"), FILES, ids=[f"{group}-{name}" for group, name in FILES])
def test_a_number_that_cannot_be_is_refused_in_one_line(group: str, name: str) -> None:
    whole = part(group, name)
    for path, kinds in numbers(whole):
        option = str(next(key for key in reversed(path) if isinstance(key, str)))
        for value in VALUES:
            try:
                made = changed(whole, path, value)
            except ValueError as refused:
                said = str(refused)
                assert "\n" not in said, said
                assert len(said) < 300, said
                assert option in said, (path, value, said)
                continue
            assert made is not None
            assert isinstance(value, float if float in kinds else int) or type(value) is int, (path, value)
            assert type(value) is not bool, (path, value)
            assert math.isfinite(value), (path, value)
            assert value in (0, -1) or float in kinds, f"{path}={value} has no sensible upper bound"


def test_the_numbers_of_every_file_are_seen() -> None:
    seen = {(*file, *path) for file in FILES for path, _ in numbers(part(*file))}
    assert {
        ("method", "gptq", "damping"),
        ("method", "aqlm", "inner", "format", "codebooks"),
        ("method", "aqlm", "tuning", "betas", 1),
        ("method", "sinq", "kurtosis_gate"),
        ("method", "mixed", "budget", "bits_per_weight"),
        ("method", "sinq_hqq", "refinement", "growth"),
        ("evaluation", "default", "perplexity", "windows"),
        ("calibration", "c4", "samples"),
        ("calibration", "sotu", "text", "calibrate_until"),
        ("sweep", "search", "max_bytes"),
    } <= seen
    assert len(seen) > 250
