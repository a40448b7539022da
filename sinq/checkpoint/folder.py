"""Saving and loading of a compressed model: safetensors for tensors, JSON for the rest.

    folder/
      config.json          the model's own Hugging Face configuration (the architecture)
      generation_config.json   the settings by which it generates
      sinq.json            the edits made to it, in order (`layout.py`), and a checksum of each tensor
      README.md            a model card, for people
      model.safetensors    every stored tensor once; those of a compressed layer are `<layer>.weight.<tensor>`

`stream.py` writes the same, with the tensors in several files as Hugging Face does:
`model-00001-of-00032.safetensors` and so on, and `model.safetensors.index.json`, which maps each tensor to
its file.

Loaded tensors are bit for bit the saved ones: packed codes and scales are never decoded and encoded again. On
a CPU they are not even copied. Files are memory-mapped (privately: writing to a tensor does not change the
file), and every tensor whose dtype is the requested one is a view of its file. All are read once, to compare
their checksums; their pages are shared with other processes that load the same model.

A folder is data from elsewhere. Before memory is taken, the architecture is built without weights, and names,
types and shapes of all tensors are compared with it. `sinq.json` is written last and removed first, so a
folder that was half overwritten is not loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sinq.checkpoint.card import CARD, model_card
from sinq.checkpoint.configuration import (
    CONFIG,
    GENERATION,
    read_config,
    read_generation,
    without_weights,
    write_config,
    write_generation,
)
from sinq.checkpoint.layout import LAYOUT, checksum, read_layout, write_layout
from sinq.checkpoint.weight_files import INDEX, LISTED, TENSORS, all_tensors, unfit
from sinq.common.atomic_files import replacing
from sinq.model.edits import Edit, architecture, edits, tensor_identity, unexplained
from sinq.model.stored import StoredNumbers

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def stored_tensors(model: nn.Module, dense_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the tensors that `save` writes: every parameter and persistent buffer once.

    Shared tensors have their first name.

    Args:
        dense_dtype: dtype of floating-point tensors that are not compressed (say, the one they were loaded
            from); by default their dtype in memory.
    """
    stores = {name for name, module in model.named_modules() if isinstance(module, StoredNumbers)}
    seen = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        identity = tensor_identity(tensor)
        if identity in seen:
            continue
        seen.add(identity)
        dense = tensor.is_floating_point() and name.rpartition(".")[0] not in stores
        cast = dense_dtype is not None and dense
        tensors[name] = tensor.detach().to(dense_dtype) if cast else tensor.detach()
    return tensors


def save(
    model: "PreTrainedModel",
    folder: str | Path,
    dense_dtype: torch.dtype | None = None,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model with its edits to a folder, which is made if missing.

    Args:
        dense_dtype: see `stored_tensors`.
        tokenizer: written beside, with its chat template.
        about: facts for the model card, `README.md`, beside those that are in the model (`card.py`).

    Raises:
        ValueError: the model has something that `load` could not restore (a hook, a shape, a module), named
            in the message; or the folder holds a model in several files, which would stay beside the new one.
    """
    folder = Path(folder)
    if reasons := unexplained(model):
        more = f", and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
        raise ValueError(
            "the model cannot be saved, since loading would not bring back what was changed:"
            f" {'; '.join(reasons[:LISTED])}{more}."
            " Make such changes by sinq.model.edits.edit"
        )
    if (folder / INDEX).exists():
        raise ValueError(
            f"{folder} holds a model in several files ({INDEX}); save to another folder, or delete it first"
        )
    tensors = stored_tensors(model, dense_dtype)
    with replacing_all(folder, (CONFIG, GENERATION, TENSORS, CARD), last=LAYOUT) as paths:
        checksums = write_tensors(tensors, paths[TENSORS])
        write_config(model.config, dense_dtype or model.dtype, bool(edits(model)), paths[CONFIG])
        write_generation(model, paths[GENERATION])
        paths[CARD].write_text(model_card(model, tensors, about or {}))
        write_layout(edits(model), checksums, paths[LAYOUT])
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def replacing_all(folder: Path, names: tuple[str, ...], last: str) -> Iterator[dict[str, Path]]:
    """Yield scratch files by name; when the block succeeds they take their names, else nothing changes.

    Args:
        last: the name without which the folder is not loaded. It is removed before the others are replaced,
            and put back after them.
    """
    with ExitStack() as stack:
        paths = {name: stack.enter_context(replacing(folder / name)) for name in (last, *names)}
        yield paths
        (folder / last).unlink(missing_ok=True)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> dict[str, int]:
    """Write a safetensors file, and return the checksum of each tensor."""
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, path, metadata={"format": "pt"})
    return {name: checksum(tensor) for name, tensor in held.items()}


def load(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """Load a model that `save` or `stream` wrote, for inference.

    No parameter requires a gradient, since kernels have none.

    Args:
        dtype: dtype of the tensors that are not compressed, and so of the computation; by default as saved.

    Raises:
        FileNotFoundError: the folder has no `sinq.json`, or lacks a file of tensors.
        ValueError: another format, a damaged file, files of two saves, an unknown edit, missing or unexpected
            tensors, or a name that leads out of the folder; the message names file and tensor.
    """
    folder = Path(folder)
    layout = read_layout(folder)
    tensors = all_tensors(folder)
    layout.verify(tensors)
    config: Any = read_config(folder, len(tensors))
    settings = read_generation(folder)
    try:
        changes = layout.edits(tensors)
        expected = without_weights(config, dtype or config.dtype, changes, len(tensors))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{layout.path}: {error}") from error
    require_tensors(expected, tensors, folder)
    return assemble(config, settings, changes, tensors, folder, device, dtype)


def assemble(
    config: "PretrainedConfig",
    settings: "GenerationConfig | None",
    changes: Sequence[Edit],
    tensors: dict[str, Tensor],
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> "PreTrainedModel":
    """Return the model of a configuration with edits, holding tensors that fit it, for inference.

    Args:
        tensors: by their names in the edited model; see `require_tensors`.
        folder: for messages.
        dtype: as for `load`.
    """
    model = architecture(config, dtype or config.dtype, changes)
    _fill(model, tensors, folder)
    if settings is not None:
        model.generation_config = settings
    model.to(device)  # type: ignore[arg-type]
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class _Names:
    """Names of a model's tensors."""

    tensors: dict[str, Tensor]
    compressed: frozenset[str]
    """Names of tensors of compressed weights, and of others that keep their type."""

    @classmethod
    def of(cls, model: nn.Module) -> "_Names":
        named = model.named_modules(remove_duplicate=False)
        stores = {name for name, module in named if isinstance(module, StoredNumbers)}
        tensors = model.state_dict(keep_vars=True)
        return cls(tensors, frozenset(name for name in tensors if name.rpartition(".")[0] in stores))


def require_tensors(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Raise `ValueError` if tensors are not those of a model: one name for each, types and shapes.

    A dense tensor may have any type: it is cast.
    """
    names = _Names.of(model)
    loaded = {id(names.tensors[name]) for name in tensors if name in names.tensors}
    missing = [name for name, tensor in names.tensors.items() if id(tensor) not in loaded]
    unknown = [name for name in tensors if name not in names.tensors]
    misshapen = {}
    for name in tensors.keys() & names.tensors.keys():
        found, wanted = tensors[name], names.tensors[name]
        if found.shape != wanted.shape or (name in names.compressed and found.dtype != wanted.dtype):
            misshapen[name] = tuple(f"{tensor.dtype} {list(tensor.shape)}" for tensor in (found, wanted))
    if missing or unknown or misshapen:
        raise ValueError(unfit(folder, type(model).__name__, missing, unknown, misshapen))


def _fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put tensors into a model that they fit, without a copy where their dtype is the model's."""
    names = _Names.of(model)
    for name in tensors.keys() - names.compressed:
        expected = names.tensors[name]
        expected.data = tensors[name].to(expected.dtype)  # the Parameter stays, and so do ties
    for name, store in model.named_modules():
        if isinstance(store, StoredNumbers):
            try:
                store.take({key: tensors[f"{name}.{key}"] for key, _ in store.named_buffers(recurse=False)})
            except ValueError as error:
                raise ValueError(f"{folder}: {name}: {error}") from error
