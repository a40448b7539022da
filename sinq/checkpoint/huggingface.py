"""Hugging Face checkpoint on disk, read one tensor at a time.

`shape_of` builds the architecture on the meta device: names, shapes and ties, without a byte of weights.
`Source` locates every tensor of that model in the safetensors files of the folder (one file, or an index of
shards).

Files are memory-mapped. A tensor that is stored as the model has it is a view of the file: its pages are
loaded when they are read and may be dropped again at any time, so they take no memory of the process. Where
the files name or lay out tensors differently (older names; experts stored one by one that the model fuses
into one parameter), transformers' own rules for loading apply. Only a fused tensor is copied: it is assembled
when it is asked for.

Not covered: one stored tensor that becomes several of the model; `.bin` files; checkpoints that are already
quantized. All are refused.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

from sinq.checkpoint.configuration import CONFIG, read_config, read_generation, without_weights
from sinq.checkpoint.weight_files import INDEX, TENSORS, Header, opened, stored_shapes, tensor_files, unfit
from sinq.common.errors import USE_COMPRESS
from sinq.common.inside import exists

MOVED_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")
"""Buffers that older checkpoints store and models now compute."""

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of floating-point tensors, as safetensors spells them."""

TensorReader = Callable[[str], Tensor]
"""Function from the name of a model's tensor to the tensor, on the CPU."""


@dataclass(frozen=True)
class StoredTensor:
    """Source of one tensor of a model: one stored tensor, or several and the conversion that fuses them."""

    keys: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    """Pattern of the conversion that each key matches."""
    conversion: "WeightConverter | None" = None


def shape_of(folder: Path) -> "PreTrainedModel":
    """Return the model of a checkpoint folder, on the meta device, with the ties of its configuration.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no configuration or it makes no sense, the weights are no safetensors, or they
            are quantized already.
    """
    if not exists(folder, CONFIG):
        raise ValueError(f"{folder} has no {CONFIG}, so it is not the folder of a Hugging Face checkpoint")
    _refuse_pickles(folder)
    stored = stored_shapes(folder)
    config: Any = read_config(folder, len(stored))
    if (found := getattr(config, "quantization_config", None)) is not None:
        kind = found.get("quant_method") if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"{folder} holds weights that are quantized already ({kind}: quantization_config in its {CONFIG})"
        )
    try:
        model = without_weights(config, config.dtype or _first_dtype(stored, folder), (), len(stored))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    if (settings := read_generation(folder)) is not None:
        model.generation_config = settings
    return model.requires_grad_(False)


def _refuse_pickles(folder: Path) -> None:
    """Raise `ValueError` if a folder has its weights in `.bin` files only."""
    found = sorted(path.name for path in folder.glob("*.bin"))
    if found and not any(exists(folder, name) for name in (TENSORS, INDEX)):
        raise ValueError(
            f"{folder} has its weights in {found[0]}, and only safetensors can be read tensor by tensor;"
            f" load and save the model with transformers, or {USE_COMPRESS}"
        )


def require_fit(folder: Path) -> None:
    """Raise `ValueError` if files do not fit their architecture, as far as their headers show.

    Compared are the shapes of tensors that the files and the model name alike, before memory is taken; what a
    file is missing is known once transformers has renamed what it names otherwise.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: see `shape_of`; a file is damaged; or shapes differ.
    """
    model, stored = shape_of(folder), stored_shapes(folder)
    found, _ = match(model, stored)
    if misshapen := _misshapen(model, found, stored):
        raise ValueError(unfit(folder, type(model).__name__, (), (), misshapen))


def _misshapen(
    model: "PreTrainedModel", found: Mapping[str, StoredTensor], stored: Mapping[str, Header]
) -> dict[str, tuple[str, str]]:
    """Return the shapes, in the files and in the model, of tensors whose shapes differ.

    Tensors that are still to be converted are left out.
    """
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: stored[source.keys[0]].shape for name, source in found.items() if not source.conversion}
    return {
        name: (str(shape), str(expected[name])) for name, shape in shapes.items() if shape != expected[name]
    }


def _first_dtype(stored: Mapping[str, Header], folder: Path) -> torch.dtype:
    """Return the dtype of the first floating-point tensor, for a configuration without a dtype."""
    for header in stored.values():
        if header.dtype in FLOATS:
            return FLOATS[header.dtype]
    raise ValueError(f"{folder} has no floating-point tensor")


def match(model: "PreTrainedModel", stored: Iterable[str]) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return the source of each of a model's tensors, and the stored names that the model does not use."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    expected, rules = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    conversions = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in conversions for pattern in rule.source_patterns}
    found: dict[str, StoredTensor] = {}
    unknown: list[str] = []
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, conversions, model.base_model_prefix, expected)
        if name not in expected and key in expected:
            name, pattern = key, None
        if name not in expected:
            if not _is_ignored(model, key):
                unknown.append(key)
        elif pattern is None:
            found[name] = StoredTensor((key,))
        else:
            parts = found.get(name, StoredTensor((), (), by_pattern[pattern]))
            found[name] = StoredTensor((*parts.keys, key), (*parts.patterns, pattern), parts.conversion)
    return found, unknown


def _is_ignored(model: "PreTrainedModel", key: str) -> bool:
    """Return True for stored names that a model computes or declares to ignore."""
    patterns = {*MOVED_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())}
    if any(re.search(pattern, key) for pattern in patterns):
        return True
    buffers = {name for name, _ in model.named_buffers()}
    return key in buffers or f"{model.base_model_prefix}.{key}" in buffers


class Source:
    """Reader of a model's tensors from the files of a checkpoint folder.

    Raises:
        ValueError: tensors are missing, unknown, or tied but different; the message names them.
    """

    def __init__(self, folder: Path, model: "PreTrainedModel") -> None:
        self._model = model
        self._files = tensor_files(folder)
        self._expected = model.state_dict(keep_vars=True)
        self._stored, unknown = match(model, self._files)
        read = {id(self._expected[name]) for name in self._stored}
        missing = [name for name, tensor in self._expected.items() if id(tensor) not in read]
        misshapen = _misshapen(model, self._stored, stored_shapes(folder))
        if missing or unknown or misshapen:
            raise ValueError(unfit(folder, type(model).__name__, missing, unknown, misshapen))
        self._refuse_untied()

    def names(self) -> dict[str, str]:
        """Return the stored name by model name, for every tensor once; shared ones have their first name."""
        first: dict[int, str] = {}
        for name, tensor in self._expected.items():
            first.setdefault(id(tensor), name)
        stored: dict[str, str] = {}
        for name in self._stored:
            stored.setdefault(first[id(self._expected[name])], name)
        return {name: stored[name] for name in first.values()}

    @contextmanager
    def reading(self) -> Iterator[TensorReader]:
        """Yield a reader that opens every file once, and closes them at the end.

        Tensors that outlive the context keep their file mapped.
        """
        with ExitStack() as stack:
            file = cache(lambda path: stack.enter_context(opened(path)))
            yield lambda name: self._read(name, lambda key: file(self._files[key]).get_tensor(key))

    def _refuse_untied(self) -> None:
        """Raise `ValueError` if tensors that the configuration ties are stored twice and differ."""
        kept = self.names()
        by_identity = {id(self._expected[name]): stored for name, stored in kept.items()}
        with self.reading() as read:
            for name in self._stored:
                other = by_identity[id(self._expected[name])]
                if other != name and not torch.equal(read(name), read(other)):
                    raise ValueError(
                        f"{name} and {other} differ, but the configuration ties them;"
                        " set tie_word_embeddings to false there"
                    )

    def _read(self, name: str, get: TensorReader) -> Tensor:
        """Return a tensor of the model, given a function from stored names to stored tensors."""
        stored = self._stored[name]
        tensors = [get(key) for key in stored.keys]
        fusing = stored.conversion is not None
        tensor = fused(self._model, name, stored, tensors) if fusing else tensors[0]
        if tensor.shape != self._expected[name].shape:
            wanted, shape = list(self._expected[name].shape), list(tensor.shape)
            raise ValueError(
                f"{name} is {shape} in {self._files[stored.keys[0]]}; the model has it as {wanted}"
            )
        return tensor


def fused(model: "PreTrainedModel", name: str, stored: StoredTensor, tensors: list[Tensor]) -> Tensor:
    """Return the tensor of a model that stored tensors are fused into, by transformers' conversion.

    Raises:
        ValueError: they do not fit each other.
    """
    conversion = copy.deepcopy(stored.conversion)
    assert conversion is not None
    for key, pattern, tensor in zip(stored.keys, stored.patterns, tensors, strict=True):
        conversion.add_tensor(name, key, pattern, tensor)  # type: ignore[arg-type]
    try:
        return conversion.convert(name, model=model, config=model.config)[name]
    except RuntimeError as error:
        raise ValueError(
            f"{name} cannot be made of {len(tensors)} tensors like {stored.keys[0]}: {error}"
        ) from error
