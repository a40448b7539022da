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
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

TENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
MOVED_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")
"""Buffers that older checkpoints store and models now compute."""

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
        ValueError: there is no configuration, or the checkpoint is quantized already.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, so it is not the folder of a Hugging Face checkpoint")
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{folder} holds weights that are quantized already (quantization_config in its config.json)"
        )
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or _stored_dtype(folder))
    model.tie_weights()
    return model.requires_grad_(False)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: the shards of its index, or the only file.

    Raises:
        FileNotFoundError: a file is missing.
    """
    index = folder / INDEX
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [TENSORS]
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing" + (f"; {INDEX} lists it" if index.exists() else "")
            )
    return [folder / name for name in names]


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of the first floating-point tensor, for a configuration without a dtype."""
    for path in weight_files(folder):
        with opened(path) as file:
            for key in list(file.keys()):
                tensor = file.get_tensor(key)
                if tensor.is_floating_point():
                    return tensor.dtype
    raise ValueError(f"{folder} has no floating-point tensor")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield a safetensors file, memory-mapped.

    Raises:
        ValueError: the file is truncated or no safetensors file; the message names it.
    """
    try:
        file = safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}; it is incomplete or damaged") from error
    with file:
        yield file


class Source:
    """Reader of a model's tensors from the files of a checkpoint folder.

    Raises:
        ValueError: tensors are missing, unknown, or tied but different; the message names them.
    """

    def __init__(self, folder: Path, model: "PreTrainedModel") -> None:
        self._model = model
        self._files: dict[str, Path] = {}
        for path in weight_files(folder):
            with opened(path) as file:
                self._files |= dict.fromkeys(file.keys(), path)
        self._expected = model.state_dict(keep_vars=True)
        self._stored, unknown = self._match()
        found = {id(self._expected[name]) for name in self._stored}
        missing = [name for name, tensor in self._expected.items() if id(tensor) not in found]
        if missing or unknown:
            found_not = f"missing {missing[:3]}, not of the model {unknown[:3]}"
            raise ValueError(f"the files of {folder} do not fit {type(model).__name__}: {found_not}")
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

    def _match(self) -> tuple[dict[str, StoredTensor], list[str]]:
        """Return the source of each of the model's tensors, and the stored names the model does not use."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        rules = get_model_conversion_mapping(self._model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        conversions = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in conversions for pattern in rule.source_patterns}
        prefix = self._model.base_model_prefix
        found: dict[str, StoredTensor] = {}
        unknown: list[str] = []
        for key in sorted(self._files, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, conversions, prefix, self._expected)
            if name not in self._expected and key in self._expected:
                name, pattern = key, None
            if name not in self._expected:
                if not self._is_ignored(key):
                    unknown.append(key)
            elif pattern is None:
                found[name] = StoredTensor((key,))
            else:
                parts = found.get(name, StoredTensor((), (), by_pattern[pattern]))
                found[name] = StoredTensor((*parts.keys, key), (*parts.patterns, pattern), parts.conversion)
        return found, unknown

    def _is_ignored(self, key: str) -> bool:
        """Return True for stored names that the model computes or declares to ignore."""
        patterns = {*MOVED_BUFFERS, *(self._model._keys_to_ignore_on_load_unexpected or ())}
        if any(re.search(pattern, key) for pattern in patterns):
            return True
        buffers = {name for name, _ in self._model.named_buffers()}
        return key in buffers or f"{self._model.base_model_prefix}.{key}" in buffers

    def _read(self, name: str, get: TensorReader) -> Tensor:
        """Return a tensor of the model, given a function from stored names to stored tensors."""
        stored = self._stored[name]
        tensors = [get(key) for key in stored.keys]
        tensor = tensors[0] if stored.conversion is None else self._convert(name, stored, tensors)
        if tensor.shape != self._expected[name].shape:
            wanted, shape = list(self._expected[name].shape), list(tensor.shape)
            raise ValueError(
                f"{name} is {shape} in {self._files[stored.keys[0]]}; the model has it as {wanted}"
            )
        return tensor

    def _convert(self, name: str, stored: StoredTensor, tensors: list[Tensor]) -> Tensor:
        """Fuse stored tensors into one of the model, by transformers' conversion."""
        conversion = copy.deepcopy(stored.conversion)
        assert conversion is not None
        for key, pattern, tensor in zip(stored.keys, stored.patterns, tensors, strict=True):
            conversion.add_tensor(name, key, pattern, tensor)  # type: ignore[arg-type]
        try:
            return conversion.convert(name, model=self._model, config=self._model.config)[name]
        except RuntimeError as error:
            raise ValueError(
                f"{name} cannot be made of {len(tensors)} tensors like {stored.keys[0]}: {error}"
            ) from error
