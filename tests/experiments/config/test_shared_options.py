"""Options that methods share: taken exactly where one changes the method that is built, refused elsewhere."""

from dataclasses import fields
from typing import Any

import pytest
from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.common.errors import explain
from experiments.config.shared_options import SharedOptions, refuse_untaken
from sinq import NotApplicable
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("hydra")
CONF = ROOT / "conf"
METHODS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))
CHANGED: dict[str, Any] = {"bits": 3, "group_size": 32, "budget.bits_per_weight": 5.0}
"""Every shared option, at a value that is not its default."""


def composed(*overrides: str) -> DictConfig:
    return compose("config", list(overrides), return_hydra_config=True)


def outcome(config: DictConfig, **changes: Any) -> Any:
    """The method that is built with other values of shared options, or the reason why none can be."""
    changed = config.copy()
    for name, value in changes.items():
        OmegaConf.update(changed, name, value)
    try:
        return instantiate(changed.method, _convert_="all")
    except InstantiationException as error:
        return explain(error)


def refusal(config: DictConfig) -> str:
    """The message of the refusal; empty where nothing is refused."""
    try:
        refuse_untaken(config)
    except NotApplicable as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", METHODS)
def test_an_option_is_taken_exactly_if_it_changes_the_method(name: str) -> None:
    config = composed(f"method={name}")
    assert refusal(config) == ""  # defaults are not given
    usual = {"bits": 3} if name == "sinq_nf3" else {}  # at 4 bits it is refused whatever the others are
    for option, value in CHANGED.items():
        before = outcome(config, **({} if option == "bits" else usual))
        after = outcome(config, **usual | {option: value})
        config.hydra.overrides.task = [f"method={name}", f"{option}={value}"]
        assert refusal(config).startswith(f"method={name}") == (before == after), option


def test_all_shared_options_are_tried_here() -> None:
    assert {option.partition(".")[0] for option in CHANGED} == {field.name for field in fields(SharedOptions)}
    given = [f"{option}={value}" for option, value in CHANGED.items()]
    message = refusal(composed("method=none", *given))
    assert message == f"method=none takes no {' and no '.join(CHANGED)}; it has no options"


GIVEN = ["bits=3", "bits=4", "++bits=3", "budget.bits_per_weight=3", "budget={bits_per_weight: 3}"]


@pytest.mark.parametrize("given", GIVEN)
def test_it_does_not_matter_how_an_option_is_given(given: str) -> None:
    option = given.lstrip("+").partition("=")[0]
    assert refusal(composed("method=none", given)) == f"method=none takes no {option}; it has no options"


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("method=awq method@method.inner=gptq bits=3", ""),
        ("method=mixed budget.bits_per_weight=3 group_size=32", ""),
        ("method=mixed budget.bits_per_weight=3 bits=3", "method=mixed takes no bits; its options are "),
        (
            "method=mixed method@method.inner=gptq bits=4",
            "method=mixed method@method.inner=gptq takes no",
        ),
        ("method=mgptq bits=4", ""),
        ("method=awq method@method.inner=aqlm bits=3", "method=awq method@method.inner=aqlm takes no bits"),
        ("method=sinq method.grid.bits=3 bits=4", "method=sinq takes no bits; its options are "),
        ("method=sinq budget.bits_per_weight=4", "method=sinq takes no budget.bits_per_weight; "),
        ("method=aqlm on_misfit=skip seed=3 device=cpu", ""),  # options of the run, not of methods
    ],
)
def test_an_inner_method_takes_options_too(words: str, refused: str) -> None:
    message = refusal(composed(*words.split()))
    assert message.startswith(refused)
    assert bool(message) == bool(refused)


def test_a_refusal_names_the_first_options_there_are_instead() -> None:
    assert refusal(composed("method=aqlm", "bits=3")) == (
        "method=aqlm takes no bits; its options are method.inner.format.codebooks, "
        "method.inner.format.bits_per_codebook, method.inner.format.group, "
        "method.inner.format.codebook_share, method.inner.beam, "
        "method.inner.init_iterations … (see --cfg job)"
    )
