"""Words for a method that is made the wrong way, such as `SINQ(4)` or `SINQ(bits=4)`.

Options of a method are its fields, and several fields are dataclasses themselves (the grid, a refinement, the
method inside). Python's own messages name none of them.
"""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any


def check_arguments(method: type, values: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Check the names of a dataclass's arguments, and the types of those that are dataclasses or methods.

    Args:
        values: positional arguments.
        options: named arguments.

    A part of another kind, such as a method where a grid belongs, is left to the method's own checks.

    Raises:
        TypeError: there is no such option, or its value is of another type; the message has the right form.
    """
    if not dataclasses.is_dataclass(method):
        return
    names = [field.name for field in dataclasses.fields(method) if field.init]
    for option in options.keys() - set(names):
        raise TypeError(_unknown(method, option, options[option], names))
    for name, value in (*zip(names, values, strict=False), *options.items()):
        kinds = _kinds(method).get(name)
        if kinds and not isinstance(value, kinds) and not _is_part(value):
            raise TypeError(_wrong(method, name, value, kinds[0]))


def _is_part(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


@cache
def _kinds(method: type) -> dict[str, tuple[type, ...]]:
    """Return the accepted classes of each field whose type is a dataclass or an abstract class of ours."""
    hints = typing.get_type_hints(method)
    found = {}
    for field in dataclasses.fields(method):
        hint = hints[field.name]
        kinds = tuple(kind for kind in typing.get_args(hint) or (hint,) if isinstance(kind, type))
        if any(kind.__module__.startswith(("sinq.", "baselines.")) for kind in kinds):
            found[field.name] = kinds
    return found


def _wrong(method: type, name: str, value: Any, kind: type) -> str:
    made = _default_class(method, name) or kind
    right = f"{made.__name__}()"
    if dataclasses.is_dataclass(made) and isinstance(value, int | float | str):
        right = f"{made.__name__}({dataclasses.fields(made)[0].name}={value!r})"
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    return (
        f"{method.__name__}({name}={value!r}) is not possible: {name} must be {article} {kind.__name__},"
        f" as in {method.__name__}({name}={right})"
    )


def _unknown(method: type, option: str, value: Any, names: Sequence[str]) -> str:
    start = f"{method.__name__} has no option {option}"
    inside = next(_inside(method, option, value), None)
    if inside is not None:
        return f"{start}; write {method.__name__}({inside})"
    return f"{start}; its options are {', '.join(names)}"


def _inside(method: type, option: str, value: Any) -> Iterator[str]:
    """Yield arguments, such as `grid=Grid(bits=4)`, that set an option of a field, or of a field's field."""
    parts = {name: made for name in _kinds(method) if (made := _default_class(method, name))}
    for name, made in parts.items():
        if dataclasses.is_dataclass(made) and option in {field.name for field in dataclasses.fields(made)}:
            yield f"{name}={made.__name__}({option}={value!r})"
    for name, made in parts.items():
        if dataclasses.is_dataclass(made):
            yield from (f"{name}={made.__name__}({inside})" for inside in _inside(made, option, value))


def _default_class(method: type, name: str) -> type | None:
    """Return the class of a field's default, or else an accepted dataclass: SINQ where it is any method."""
    field = next(each for each in dataclasses.fields(method) if each.name == name)
    default = field.default_factory() if callable(field.default_factory) else field.default
    if default is not None and default is not dataclasses.MISSING:
        return type(default)
    accepted = (each for kind in _kinds(method)[name] for each in (kind, *_below(kind)))
    concrete = [kind for kind in accepted if dataclasses.is_dataclass(kind)]
    return next((kind for kind in concrete if vars(kind).get("name") == "sinq"), next(iter(concrete), None))


def _below(kind: Any) -> Iterator[type]:
    for child in type.__subclasses__(kind):
        yield child
        yield from _below(child)
