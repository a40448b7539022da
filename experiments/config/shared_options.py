"""Options that several methods share: accepted where the method's YAML refers to them, else refused.

    # conf/method/rtn.yaml
    grid: {bits: "${bits}", group_size: "${group_size}"}

`method=rtn bits=3` is RTN at 3 bits. `method=aqlm bits=3` would build the same method as `method=aqlm`, and
silently ignore the 3.

Two facts of Hydra decide:

- *Taken*: before interpolations are resolved, a composed method still contains `${bits}` where it takes the
  option, and so does a method inside another (`method@method.inner=gptq`), unless the outer one sets the
  option itself (`Method.sets_options`: mixed precision replaces all bits).
- *Given*: Hydra keeps the overrides of a configuration in `hydra.overrides.task`. The command line, a point
  of a sweep, a trial of a search, a run of an experiment and a cell of a table all arrive as overrides.
  Defaults do not, nor do values in the body of a YAML, which are defaults too.

A new option is one line in `SharedOptions`, and `${…}` in the YAMLs that take it.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import hydra_zen
from omegaconf import DictConfig, OmegaConf

from baselines.mixed.knapsack import Budget
from sinq import NotApplicable

NAMED = 6
"""Number of the method's options that a refusal names."""


@dataclasses.dataclass(kw_only=True)
class SharedOptions:
    """Options at the top level of a configuration that methods may refer to."""

    bits: int = 4
    group_size: int = 64
    budget: hydra_zen.builds(Budget, populate_full_signature=True)  # type: ignore[valid-type]


def refuse_untaken(config: DictConfig) -> None:
    """Refuse a shared option that was given but that the chosen method does not take.

    Args:
        config: composed with Hydra's section (`return_hydra_config=True`), and not resolved.

    Raises:
        NotApplicable: there is such an option; the message names it, the method, and the method's options.
    """
    taken = _references(OmegaConf.to_container(config.method, resolve=False))
    ignored = [option for option in _given(config) if not any(_overlap(option, each) for each in taken)]
    if ignored:
        raise NotApplicable(f"{_chosen(config)} takes no {' and no '.join(ignored)}; {_own_options(config)}")


def _given(config: DictConfig) -> list[str]:
    """Return the shared options among the overrides, as dotted names, such as `budget.bits_per_weight`."""
    shared = {field.name for field in dataclasses.fields(SharedOptions)}
    names = [override.lstrip("+~").partition("=")[0] for override in config.hydra.overrides.task]
    return list(dict.fromkeys(name for name in names if name.partition(".")[0] in shared))


def _references(node: Any) -> set[str]:
    """Return the dotted names of the options that a method's configuration refers to, and that it uses."""
    if not isinstance(node, Mapping):
        return set(re.findall(r"\$\{\s*([\w.]+)\s*\}", str(node)))
    found = set().union(*map(_references, node.values()))
    return found - getattr(_class(node.get("_target_")), "sets_options", frozenset())


def _class(target: str | None) -> Any:
    """Return the imported class at a path; None where there is none."""
    module, _, name = (target or "").rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _overlap(one: str, other: str) -> bool:
    """Return True where two dotted names are the same option, or one is a section that contains the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _chosen(config: DictConfig) -> str:
    """Return the method, and the methods inside it that were chosen by name, as on the command line."""
    given = {override.lstrip("+~").partition("=")[0] for override in config.hydra.overrides.task}
    groups = config.hydra.runtime.choices.items()
    return " ".join(
        f"{group}={name}"
        for group, name in groups
        if group == "method" or (group in given and group.startswith("method@"))
    )


def _own_options(config: DictConfig) -> str:
    names = list(_leaves(OmegaConf.to_container(config.method, resolve=False), "method"))
    if not names:
        return "it has no options"
    return f"its options are {', '.join(names[:NAMED])}{' …' if len(names) > NAMED else ''} (see --cfg job)"


def _leaves(node: Any, path: str) -> Iterator[str]:
    if not isinstance(node, Mapping):
        yield path
        return
    for key, value in node.items():
        if not key.startswith("_"):
            yield from _leaves(value, f"{path}.{key}")
