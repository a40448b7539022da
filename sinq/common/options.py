"""Checks of options when a dataclass is made: numbers within bounds, and every other field of its type.

    @dataclass(frozen=True)
    class GPTQ(LayerMethod):
        damping: float = 0.01
        block: int = 128

        def __post_init__(self) -> None:
            check(self, "method", damping=number(least=0, most=1e6), block=whole(1))

`check` looks at *all* fields. A field without a rule is checked by its annotation: a number must be finite, a
choice a member of its enum, a nested group of options an instance of its class. NaN fails every rule: it
passes comparisons such as `value < 0`, so a rule states what holds and not what is wrong.
"""

import dataclasses
import enum
import math
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from sinq.common.named import Named

MANY = 1_000_000
"""Largest count where an option gives no other bound: beyond it, work would not end in a lifetime."""
LARGEST = 2**63 - 1
SHOWN = 60
"""Characters of a value that a message shows."""


class Rule(Protocol):
    """A condition on a value; as text it completes "it must be …"."""

    def holds(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Bounds:
    """A finite number within bounds; each bound is included unless it is open."""

    whole: bool
    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: Any) -> bool:
        kinds = int if self.whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below and abs(value) <= sys.float_info.max

    def __str__(self) -> str:
        noun = "a whole number" if self.whole else "a number"
        low = "" if abs(self.low) in (math.inf, LARGEST) else _digits(self.low)
        high = "" if abs(self.high) in (math.inf, LARGEST) else _digits(self.high)
        if not low and not high:
            return noun if self.whole else "a finite number"
        if low and high and not self.open_low and not self.open_high:
            return f"{noun} from {low} to {high}"
        parts = [f"{'above' if self.open_low else 'at least'} {low}"] if low else []
        parts += [f"{'below' if self.open_high else 'at most'} {high}"] if high else []
        return f"{noun} {' and '.join(parts)}"


def _digits(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e12 else f"{value:g}"


def whole(least: int = -LARGEST, most: int = MANY) -> Bounds:
    """Return the rule of a whole number, both bounds included; True and 2.0 are none."""
    return Bounds(True, least, most)


SEED = whole(0, 2**32 - 1)
"""The seeds that every generator in use accepts."""


def number(
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> Bounds:
    """Return the rule of a finite number; `least` and `most` are included, `above` and `below` are not."""
    return Bounds(
        False,
        least if above is None else above,
        most if below is None else below,
        above is not None,
        below is not None,
    )


@dataclass(frozen=True)
class OneOf:
    """Choice of one of some values, of the same type."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in self.values)

    def __str__(self) -> str:
        return f"one of {self.values}"


def one_of(*values: Any) -> OneOf:
    """Return the rule of a value from a list."""
    return OneOf(values)


@dataclass(frozen=True)
class Several:
    """A list in which every value satisfies a rule."""

    rule: Rule
    least: int = 1
    length: int | None = None

    def holds(self, value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        fits = len(value) >= self.least if self.length is None else len(value) == self.length
        return fits and all(self.rule.holds(each) for each in value)

    def __str__(self) -> str:
        if self.length is not None:
            return f"a list of {self.length}, each {self.rule}"
        return f"a list{' with at least one value' if self.least else ''}, each {self.rule}"


def several(rule: Rule, least: int = 1, length: int | None = None) -> Several:
    """Return the rule of a list of at least `least` values, or of exactly `length`."""
    return Several(rule, least, length)


@dataclass(frozen=True)
class Instance:
    """A value of a class."""

    kind: type

    def holds(self, value: Any) -> bool:
        return isinstance(value, self.kind)

    def __str__(self) -> str:
        if self.kind is bool:
            return "true or false"
        if issubclass(self.kind, enum.Enum):
            return f"one of {', '.join(member.name for member in self.kind)}"
        return "text" if self.kind is str else f"a {self.kind.__name__}"


def check(options: Any, where: str = "", **rules: Rule) -> None:
    """Check every field of a dataclass.

    Args:
        where: the name of the group of options, which messages put before an option's.
        rules: field → what its value must be; None stays accepted where the annotation has it.

    Raises:
        ValueError: a value breaks its rule; the message is one line with option, value and what is accepted.
    """
    for name, (by_type, optional) in _rules_of_types(options.__class__).items():
        rule, value = rules.get(name, by_type), getattr(options, name)
        if rule is None or (value is None and optional) or rule.holds(value):
            continue
        option = f"{where}.{name}" if where else name
        also = ", or null" if optional else ""
        raise ValueError(f"{option}={shown(value)} is not possible; it must be {rule}{also}")


def shown(value: Any) -> str:
    """Return a value as a message shows it: at most `SHOWN` characters, an object by its class's name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__
    text = str(list(value) if isinstance(value, tuple) else "null" if value is None else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


@lru_cache(maxsize=256)
def _rules_of_types(cls: type) -> dict[str, tuple[Rule | None, bool]]:
    """Return for each field the rule that its annotation states, and whether None is accepted."""
    hints = {field.name: field.type for field in dataclasses.fields(cls)}
    if any(isinstance(hint, str) for hint in hints.values()):
        resolved = typing.get_type_hints(cls)
        hints = {name: resolved[name] for name in hints}
    return {name: _rule_of_type(hint) for name, hint in hints.items()}


def _rule_of_type(hint: Any) -> tuple[Rule | None, bool]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        rule = _rule_of_type(kinds[0])[0] if len(kinds) == 1 else None
        return rule, len(kinds) < len(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        kinds = [kind for kind in typing.get_args(hint) if kind is not Ellipsis]
        item = _rule_of_type(kinds[0])[0]
        return (None if item is None else Several(item, 0)), False
    return _rule_of_class(hint), False


def _rule_of_class(kind: Any) -> Rule | None:
    if not isinstance(kind, type) or kind is object:
        return None
    if kind in (int, float):
        return whole(-LARGEST, LARGEST) if kind is int else number()
    # A finer kind than the root, such as a method that works layer by layer, is the dataclass's to refuse.
    root = next((base for base in reversed(kind.__mro__) if Named in base.__bases__), kind)
    known = kind in (bool, str) or issubclass(kind, enum.Enum | Named) or dataclasses.is_dataclass(kind)
    return Instance(root) if known else None
