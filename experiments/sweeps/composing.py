"""Configurations of a sweep's runs for the plan, composed fast.

Hydra reads and merges some thirty files for each run, nearly always the same ones: which files, is decided by
the groups that a run chooses (`method=sinq`). Here these are composed once for each choice, and copied; the
other options (`bits=3`) are put into the copy, as Hydra does it. The runs themselves are composed by Hydra.
"""

import copy
from collections.abc import Container, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """A function from a run's overrides to its configuration, in a sweep of the configuration `config`."""

    def __init__(self, loader: Any, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, words: Sequence[str]) -> DictConfig:
        """Return the configuration; raise Hydra's error where there is none."""
        groups = tuple(word for word in words if self._chooses_files(self._parse(word)))
        values = [self._parse(word) for word in words if word not in groups]
        try:
            composed = _copied(self._base(groups), {each.key_or_group.split(".")[0] for each in values})
            ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        except (HydraException, OmegaConfBaseException):
            return self._whole(words)  # which says what is wrong
        composed.hydra.overrides.task = list(words)
        return composed

    def _parse(self, word: str) -> Override:
        if word not in self._parsed:
            self._parsed[word] = self._parser.parse_override(word)
        return self._parsed[word]

    def _chooses_files(self, override: Override) -> bool:
        """Return whether an override is of a group, of Hydra itself, or removes something."""
        special = override.is_hydra_override() or override.is_delete() or override.package is not None
        return special or self._loader.repository.group_exists(override.key_or_group)

    def _base(self, groups: tuple[str, ...]) -> DictConfig:
        if groups not in self._bases:
            self._bases[groups] = self._whole(groups)
        return self._bases[groups]

    def _whole(self, words: Sequence[str]) -> DictConfig:
        composed: DictConfig = self._loader.load_sweep_config(self._config, list(words))
        return composed


def _copied(config: DictConfig, changed: Container[str]) -> DictConfig:
    """Return a copy to put overrides into; what none of them reaches is shared with the original.

    Args:
        config: the original.
        changed: sections that the overrides reach. Of Hydra's section, which is four fifths of a
            configuration, they reach only the list of themselves (`_chooses_files`).
    """
    sections = _nodes(config)
    kept = [node for name, node in sections.items() if name not in changed and not _refers(node)]
    kept += [node for name, node in _nodes(sections["hydra"]).items() if name != "overrides"]
    return copy.deepcopy(config, {id(node): node for node in kept})


def _nodes(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = config._content
    return found


def _refers(node: Any) -> bool:
    """Return whether a section has an interpolation, which would be looked up in the original."""
    if node._is_interpolation():
        return True
    content = getattr(node, "_content", None)
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return any(map(_refers, inside))
