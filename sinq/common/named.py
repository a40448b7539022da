"""Names and versions of classes in files.

Rows, checkpoints and journals outlive the source code that wrote them. They never hold the path of a class,
which changes whenever a file moves. They hold the class's `name`, unique below a *root* (`Method`,
`CompressedWeight`, `Edit`, `Evaluation` …), and its `version`. To read them, `named` looks a name up among
the classes that are already imported. Nothing named in a file is ever imported.

The version is raised when the same options give other numbers than before, because a defect was mended or a
default changed. Rows of the old version are then not taken for runs of the new one; they stay readable.

`described` leaves out options that have their defaults. A new option with a neutral default thus changes no
identity of any run.
"""

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

T = TypeVar("T", bound="Named")


class Named:
    """A class that files know by `name`.

    A root is a direct subclass; concrete classes below it declare their own names.

    Raises:
        TypeError: when a second class of one root is defined with a name that is taken.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name = cls.__dict__.get("name")
        if isinstance(name, str):
            root = next(base for base in reversed(cls.__mro__) if Named in base.__bases__)
            for other in _below(root):
                if other is not cls and other.__dict__.get("name") == name and _path(other) != _path(cls):
                    raise TypeError(
                        f"{_path(cls)} and {_path(other)} are both named {name!r}; rename one of them"
                    )


def named(root: type[T], name: str) -> type[T]:
    """Return the imported subclass of `root` that has a name.

    Raises:
        ValueError: no class has the name; the message lists the known names.
    """
    known = _known(root)
    if name not in known:
        raise ValueError(
            f"{name!r} is not the name of a known {root.__name__}; known are {', '.join(sorted(known))}"
        )
    return known[name]


def names(root: type[Named]) -> list[str]:
    """Return the names of the imported subclasses of `root`, sorted."""
    return sorted(_known(root))


def _known(root: type[T]) -> dict[str, type[T]]:
    """Return the imported subclasses of `root` by name."""
    known: dict[str, type[T]] = {}
    for found in _below(root):
        declared = found.__dict__.get("name")
        # A class that `__init_subclass__` refused as a duplicate may still be in memory.
        refused = declared in known and _path(known[declared]) != _path(found)
        if isinstance(declared, str) and not refused:
            known[declared] = found
    return known


def name_of(value: Named) -> str:
    """Return the name that a value's class declares itself; an inherited name belongs to another class.

    Raises:
        TypeError: the class declares no name.
    """
    name = type(value).__dict__.get("name")
    if not isinstance(name, str):
        raise TypeError(
            f'{_path(type(value))} has no name to be known by in files; add `name: ClassVar[str] = "…"` to it'
        )
    return name


def described(value: Any, defaults: bool = False) -> Any:
    """Return a dataclass, enum, list or mapping as plain JSON values.

    Named classes begin with their name and version.

    Args:
        defaults: include the options that have their default values.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _header(value) | _options(value, defaults)
    if isinstance(value, dict):
        return {key: described(item, defaults) for key, item in value.items()}
    return [described(item, defaults) for item in value] if isinstance(value, list | tuple) else value


def _header(value: Any) -> dict[str, Any]:
    return {"name": name_of(value), "version": value.version} if isinstance(value, Named) else {}


def _options(value: Any, defaults: bool) -> dict[str, Any]:
    options = {}
    for field in dataclasses.fields(value):
        option = described(getattr(value, field.name), defaults)
        if defaults or option != described(_default(field), defaults):
            options[field.name] = option
    return options


def _default(field: "dataclasses.Field[Any]") -> Any:
    """Return a field's default; `MISSING`, which equals no option, for a field without one."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _below(root: Any) -> Iterator[Any]:
    for child in root.__subclasses__():
        yield child
        yield from _below(child)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
