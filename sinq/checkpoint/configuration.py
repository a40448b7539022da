"""Configuration of a model on disk, read as data, and the architecture built from it without weights.

transformers builds whatever a configuration asks for: 20,000 layers, or code from the hub. So before it is
asked, what a configuration counts is compared with the number of tensors in the files, and what would choose
code is refused. While modules are built, their parameters are counted too.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sinq.common.inside import exists, regular_file
from sinq.common.library_errors import library_errors, reason
from sinq.common.reading import read_json, shown
from sinq.model.edits import Edit, architecture

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

CONFIG, GENERATION = "config.json", "generation_config.json"
QUANT_METHOD = "sinq-harness"
"""Name under which transformers looks for the reader of a folder with edits (`sinq/transformers/`)."""
COUNT = re.compile(r"(^|_)(?<!per_)(layers?|blocks?|depth)$")
"""Pattern of an option that counts parts which each have tensors."""
FEW = 1000
"""Number of parts, or of parameters, that is built whatever the files hold."""
USES = 8
"""Parameters that may be made for one stored tensor: shared ones are made for each use, then tied."""


def read_config(folder: Path, tensors: int) -> "PretrainedConfig":
    """Return the configuration of a folder.

    Args:
        tensors: number of tensors in the files of the folder.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it makes no sense, counts more parts than there are tensors, or would choose code.
    """
    from transformers import AutoConfig

    path = regular_file(folder, CONFIG)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ValueError(f"{path} has no model_type, so it is not the configuration of a model")
    for name, value in _options(content):
        if COUNT.search(name) and isinstance(value, int | float) and value > max(FEW, tensors):
            raise ValueError(f"{path} has {name}={value}; the files hold {tensors} tensors")
        if name.endswith("_implementation") and "/" in str(value):
            raise ValueError(f"{path} has {name}={shown(value)}, which would run code from elsewhere")
    with reasons(path):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _options(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values of all options of a configuration, and of those in it."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield name, value
            yield from _options(value)
    elif isinstance(content, list):
        for value in content:
            yield from _options(value)


def read_generation(folder: Path) -> "GenerationConfig | None":
    """Return the generation settings of a folder, or None where there are none.

    Raises:
        ValueError: they make no sense.
    """
    from transformers import GenerationConfig

    if not exists(folder, GENERATION):
        return None
    path = regular_file(folder, GENERATION)
    if not isinstance(read_json(path), dict):
        raise ValueError(f"{path} is not an object")
    with reasons(path):
        return GenerationConfig.from_pretrained(folder)


@contextmanager
def reasons(path: Path) -> Iterator[None]:
    """Raise what transformers raises about a file as a `ValueError` of one line that names the file."""
    try:
        yield
    except library_errors() as error:
        raise ValueError(f"{path}: {reason(error)}") from error


def without_weights(
    config: "PretrainedConfig",
    dtype: torch.dtype | str | None,
    changes: Sequence[Edit],
    tensors: int,
) -> "PreTrainedModel":
    """Return the causal language model of a configuration with edits, on the meta device.

    Args:
        tensors: number of tensors in its files.

    Raises:
        ValueError: the model has far more parameters than there are tensors, or it cannot be built.
    """
    with torch.device("meta"), at_most(FEW + USES * tensors):
        return architecture(config, dtype, changes)


@contextmanager
def at_most(most: int) -> Iterator[None]:
    """Raise `ValueError` as soon as more parameters than `most` are put into modules."""
    made = 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ValueError(f"it has more than {most} parameters, far more than there are tensors")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def write_config(config: "PretrainedConfig", dtype: torch.dtype, edited: bool, path: Path) -> None:
    """Write the architecture, and the dtype of tensors that are not compressed.

    Args:
        edited: whether the model has edits, so that transformers alone would not build it.
    """
    copied = type(config).from_dict(config.to_dict())
    copied.dtype = dtype
    if edited:
        copied.quantization_config = {"quant_method": QUANT_METHOD}
    copied.to_json_file(path)


def write_generation(model: "PreTrainedModel", path: Path) -> None:
    """Write the settings by which a model generates, such as the tokens at which it stops."""
    from transformers import GenerationConfig

    settings = getattr(model, "generation_config", None)
    (settings or GenerationConfig.from_model_config(model.config)).to_json_file(path)
