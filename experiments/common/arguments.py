"""Mistakes in the words of the command line, found before Hydra reads them or explained after.

Hydra answers a wrong flag with its whole usage, and an override it cannot read with its grammar's terms. Here
each is one line with the word, what is accepted and the right form.
"""

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from experiments.common.paths import conf_dir

NO_NAME = re.compile(r"null|true|false|[-+]?[\d.]+|[\[{].*|", re.IGNORECASE)
"""Values that are no name of a file in `conf/`."""


def check_arguments(words: Sequence[str]) -> None:
    """Refuse words of a command line that Hydra would answer with its usage.

    Raises:
        ValueError: an unknown flag, a flag without its value, options on both sides of a flag, an option
            without a name, or a part that is not chosen by name.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    known, rest = parser.parse_known_args(list(words))
    for word in rest:
        if word.startswith("-"):
            raise ValueError(f"there is no flag {word}; there are: {_flags(parser)}{_as_option(word)}")
    if rest:
        flags = [word for word in words if word not in (*known.overrides, *rest)]
        right = shlex.join(["python", "run.py", *flags, *known.overrides, *rest])
        raise ValueError(f"{rest[0]} stands behind {flags[0]}, other options before it; write {right}")
    for override in known.overrides:
        _check_override(override)


def of_each_run(words: Sequence[str]) -> list[str]:
    """Return the words of a sweep, with options of a swept part left to its runs.

    Hydra reads single values into the configuration before there is a run: with `calibration=a,b`, the option
    `calibration.samples=8` is then one of `calibration=none`, which has none of this name. As a sweep of one
    value, `calibration.samples=choice(8)`, it is read with each run.
    """
    if not {"-m", "--multirun"} & {*words} and not any(word.startswith("experiment=") for word in words):
        return list(words)
    parsed = [(word, _parsed(word)) for word in words if not word.startswith(("-", "~"))]
    overrides = {word: override for word, override in parsed if override is not None}
    swept = tuple(f"{_place(each)}." for each in overrides.values() if each.is_sweep_override())
    waiting = {
        word
        for word, each in overrides.items()
        if not each.is_sweep_override() and _place(each).startswith(swept)
    }
    return [_as_sweep(word) if word in waiting else word for word in words]


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _place(override: Override) -> str:
    """Return the place in the configuration that an override is for, such as `method.inner`."""
    return override.package or override.key_or_group


def _as_sweep(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key}=choice({value})"


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message}; see --help")


def _flags(parser: argparse.ArgumentParser) -> str:
    named = [action.option_strings for action in parser._actions if action.option_strings]
    return ", ".join("/".join(strings) for strings in named)


def _as_option(word: str) -> str:
    name, _, value = word.lstrip("-").partition("=")
    return f"; options are written without dashes, {name}={value or '…'}" if name.isidentifier() else ""


def _check_override(override: str) -> None:
    key, equals, value = override.partition("=")
    if not key.strip():
        raise ValueError(f"{override} names no option; write option=value, such as bits=4")
    group = key.lstrip("+").partition("@")[0]
    folder = conf_dir() / group
    if equals and re.fullmatch(r"[\w/]+", group) and folder.is_dir() and NO_NAME.fullmatch(value):
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ValueError(f"{override} is not possible; {group} must be one of {names}")


def unreadable(override: str, reason: str) -> str:
    """Return what to do about an override that Hydra's grammar cannot read."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"override {override!r} cannot be read: {reason}; write option=value"
    mark = "'" if '"' in value else '"'
    right = shlex.quote(f"{key}={mark}{value}{mark}")
    return (
        f"override {override!r} cannot be read: {reason}. A value with spaces, brackets, commas or letters"
        f" beyond ASCII is quoted twice: {right}"
    )


def not_composed(message: str) -> str | None:
    """Return what to do about one of Hydra's errors in composing; None for others.

    Args:
        message: the text of Hydra's error, of one or more lines.
    """
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'", message):
        return _several_values(found[1])
    if found := re.search(r"Could not override '(.*?)'\. No match in the defaults list", message):
        group, _, package = found[1].partition("@")
        part = f" part {package}" if package else f" part chosen by {group}"
        return f"{found[1]} cannot be chosen: the configuration has no{part}; see --cfg job"
    if message.startswith("Could not override"):
        return " ".join(message.split())
    return None


def _several_values(override: str) -> str:
    key, _, value = override.partition("=")
    as_list = "" if re.match(r"\w+\(", value) else f", or {key}=[{value}] for one run with a list"
    return f"{override} has several values: put -m before the options, for one run each{as_list}"
