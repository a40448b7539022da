"""Rules of options: what holds is stated, so NaN, a boolean and another type never pass."""

import enum
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinq.common.options import SEED, check, number, one_of, several, whole

ODD = [math.nan, math.inf, -math.inf, True, False, "abc", "1", [1], {}, 1j]


class Kind(enum.Enum):
    small = 1
    large = 2


@dataclass(frozen=True)
class Inner:
    share: float = 0.5

    def __post_init__(self) -> None:
        check(self, "inner", share=number(above=0, most=1))


@dataclass(frozen=True)
class Options:
    constant: ClassVar[float] = math.nan
    count: int = 1
    limit: int | None = None
    size: float = 1.0
    pair: tuple[float, float] = (1.0, 2.0)
    names: tuple[str, ...] = ()
    kind: Kind = Kind.small
    flag: bool = False
    word: str = ""
    inner: Inner = Inner()
    perhaps: Inner | None = None

    def __post_init__(self) -> None:
        check(self, "some", count=whole(1, 9), limit=whole(0), pair=several(number(least=0), length=2))


@given(
    low=st.floats(-1e6, 1e6), width=st.floats(0, 1e6), value=st.floats(allow_nan=True, allow_infinity=True)
)
def test_bounds_hold_as_arithmetic_says(low: float, width: float, value: float) -> None:
    high = low + width
    assert number(low, high).holds(value) == (value in (low, high) or low < value < high)
    assert number(above=low, below=high).holds(value) == (low < value < high)
    assert number().holds(value) == math.isfinite(value)


@given(st.integers())
def test_whole_numbers_of_any_size_are_compared_exactly(value: int) -> None:
    assert whole(0, 2**40).holds(value) == (0 <= value <= 2**40)
    assert SEED.holds(value) == (0 <= value < 2**32)
    assert not whole(-(2**40), 2**40).holds(float(value % 1000))


@pytest.mark.parametrize("value", ODD, ids=str)
def test_what_is_no_number_passes_no_rule(value: Any) -> None:
    rules = (whole(), number(), SEED, one_of(1, 2), several(several(number(), length=2)))
    assert not any(rule.holds(value) for rule in rules)


@pytest.mark.parametrize("field", ["count", "limit", "size", "kind", "word", "inner", "perhaps"])
@pytest.mark.parametrize("value", [math.nan, [math.nan], object()], ids=["nan", "list", "object"])
def test_every_field_is_checked_by_a_rule_or_by_its_type(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^some\.{field}=.* is not possible; it must be [^\n]*$"):
        Options(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 10}, "some.count=10 is not possible; it must be a whole number from 1 to 9"),
        (
            {"limit": -1},
            "some.limit=-1 is not possible; it must be a whole number from 0 to 1000000, or null",
        ),
        ({"count": None}, "some.count=null is not possible; it must be a whole number from 1 to 9"),
        ({"size": math.inf}, "some.size=inf is not possible; it must be a finite number"),
        (
            {"pair": (1.0,)},
            "some.pair=[1.0] is not possible; it must be a list of 2, each a number at least 0",
        ),
        ({"names": "word"}, "some.names=word is not possible; it must be a list, each text"),
        ({"kind": "small"}, "some.kind=small is not possible; it must be one of small, large"),
        ({"flag": 1}, "some.flag=1 is not possible; it must be true or false"),
        ({"perhaps": 5}, "some.perhaps=5 is not possible; it must be a Inner, or null"),
        ({"inner": Options()}, "some.inner=Options is not possible; it must be a Inner"),
        ({"word": ["a"] * 99}, f"some.word={str(['a'] * 99)[:60]}… is not possible; it must be text"),
    ],
)
def test_a_refusal_says_option_value_and_what_is_accepted(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared whole
        Options(**options)
    assert str(refused.value) == message


def test_lists_and_null_are_accepted_where_the_annotation_has_them() -> None:
    assert Options(names=["a", "b"], pair=[0.0, 3], limit=None, perhaps=None).pair == [0.0, 3]  # type: ignore[arg-type]
