import enum
import subprocess
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from sinq import SINQ, CompressedWeight, Grid, HalfQuadratic, Levels, Method
from sinq.common.named import Named, described, name_of, named


class Colour(enum.Enum):
    red = 1


class Root(Named):
    """A root of the tests' own."""


@dataclass(frozen=True)
class Plain:
    size: int = 3
    colour: Colour = Colour.red


@dataclass(frozen=True)
class Leaf(Root):
    name: ClassVar[str] = "leaf"
    version: ClassVar[int] = 2
    plain: Plain = Plain()
    several: tuple[int, ...] = (1, 2)
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Around(Root):
    name: ClassVar[str] = "around"
    inner: Root


def test_options_that_have_their_defaults_are_left_out_at_every_depth() -> None:
    assert described(Leaf()) == {"name": "leaf", "version": 2}
    changed = Leaf(Plain(size=4), [1, 2])  # type: ignore[arg-type]
    assert described(changed) == {"name": "leaf", "version": 2, "plain": {"size": 4}}
    assert described(Around(Leaf(several=(1,)))) == {
        "name": "around", "version": 1, "inner": {"name": "leaf", "version": 2, "several": [1]},
    }  # fmt: skip
    assert described(SINQ(Grid(levels=Levels.nf4), refinement=None)) == {
        "name": "sinq",
        "version": 1,
        "grid": {"levels": "nf4"},
    }
    assert described(SINQ(refinement=HalfQuadratic()))["refinement"] == {}  # not the default, which is none


def test_all_options_are_said_where_they_are_asked_for() -> None:
    assert described(Leaf(), defaults=True) == {
        "name": "leaf", "version": 2, "plain": {"size": 3, "colour": "red"}, "several": [1, 2], "more": {},
    }  # fmt: skip


def test_a_new_option_with_a_neutral_default_changes_no_description_and_a_version_does() -> None:
    def make(version: int, *fields: tuple[str, int]) -> Any:
        body = {
            "__annotations__": dict.fromkeys(dict(fields), int),
            "name": "grown",
            "version": version,
            "__qualname__": "grown",
            **dict(fields),
        }
        return dataclass(frozen=True)(type("grown", (Root,), body))()

    assert described(make(1, ("old", 0))) == described(make(1, ("old", 0), ("new", 0)))
    assert described(make(2, ("old", 0))) != described(make(1, ("old", 0)))
    # the *default* of a new option is neutral
    assert described(make(1, ("old", 0), ("new", 1))) == described(make(1, ("old", 0)))


@pytest.mark.parametrize(("root", "name"), [(Root, "leaf"), (Method, "sinq"), (CompressedWeight, "scalar")])
def test_a_second_class_of_one_name_is_an_error_where_it_is_defined(root: type, name: str) -> None:
    with pytest.raises(TypeError, match=rf"Other and .* are both named '{name}'; rename one of them"):
        type("Other", (root,), {"name": name})


def test_names_are_unique_below_their_own_root_only() -> None:
    other = type("Elsewhere", (Named,), {})
    leaf = type("Leaf", (other,), {"name": "leaf"})
    assert named(other, "leaf") is leaf
    assert named(Root, "leaf") is Leaf


def test_an_inherited_name_is_not_a_class_s_own() -> None:
    class Child(Leaf):
        pass

    with pytest.raises(TypeError, match="Child has no name to be known by in files"):
        name_of(Child())
    assert named(Root, "leaf") is Leaf


@pytest.mark.parametrize(
    "name", ["subprocess.Popen", "tests.sinq.common.test_named.Leaf", "Leaf", "", "SINQ"]
)
def test_what_a_file_says_is_looked_up_and_never_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was called"))
    with pytest.raises(ValueError, match=r"is not the name of a known Root; known are around, .*leaf"):
        named(Root, name)
