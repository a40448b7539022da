"""Saving and loading of a compressed model: safetensors for tensors, JSON for the rest.

    folder/
      config.json          the model's own Hugging Face configuration (the architecture)
      sinq.json            the edits made to it, in order (`model/edits.py`)
      model.safetensors    every stored tensor once; those of a compressed layer are `<layer>.weight.<tensor>`

`stream.py` writes the same, with the tensors in several files as Hugging Face does:
`model-00001-of-00032.safetensors` and so on, and `model.safetensors.index.json`, which maps each tensor to
its file.

Loaded tensors are bit for bit the saved ones: packed codes and scales are never decoded and encoded again. On
a CPU they are not even copied. Files are memory-mapped (privately: writing to a tensor does not change the
file), and every tensor whose dtype is the requested one is a view of its file. Memory is taken as pages are
touched, and shared with other processes that load the same model.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sinq.checkpoint.former_layouts import edits_from_format_1
from sinq.checkpoint.huggingface import INDEX, TENSORS, opened, weight_files
from sinq.common.atomic_files import replacing
from sinq.model.edits import (
    Edit,
    architecture,
    edit_as_json,
    edit_from_json,
    edits,
    tensor_identity,
    unexplained,
)
from sinq.model.linear import WeightStore

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FORMAT = 2
LAYOUT = "sinq.json"
LISTED = 3
"""Number of reasons an error names."""


def stored_tensors(model: nn.Module, dense_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the tensors that `save` writes: every parameter and persistent buffer once.

    Shared tensors have their first name.

    Args:
        dense_dtype: dtype of floating-point tensors that are not compressed (say, the one they were loaded
            from); by default their dtype in memory.
    """
    stores = {name for name, module in model.named_modules() if isinstance(module, WeightStore)}
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


def save(model: "PreTrainedModel", folder: str | Path, dense_dtype: torch.dtype | None = None) -> None:
    """Write a model with its edits to a folder, which is made if missing.

    Args:
        dense_dtype: see `stored_tensors`.

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
    folder.mkdir(parents=True, exist_ok=True)
    save_config(model.config, dense_dtype or model.dtype, folder)
    save_tensors(stored_tensors(model, dense_dtype), folder / TENSORS)
    save_layout(edits(model), folder)


def save_config(config: "PretrainedConfig", dtype: torch.dtype, folder: Path) -> None:
    """Write the architecture, and the dtype of tensors that are not compressed."""
    copied = type(config).from_dict(config.to_dict())
    copied.dtype = dtype
    copied.save_pretrained(folder)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, entirely or not at all. Tensors may be views of the file it replaces."""
    with replacing(path) as scratch:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            scratch,
            metadata={"format": "pt"},
        )


def save_layout(changes: Sequence[Edit], folder: Path) -> None:
    """Write `sinq.json`, the edits that `load` applies to the architecture."""
    content = {"format": FORMAT, "edits": [edit_as_json(change) for change in changes]}
    with replacing(folder / LAYOUT) as scratch:
        scratch.write_text(json.dumps(content, indent=1))


def load(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """Load a model that `save` or `stream` wrote, for inference.

    No parameter requires a gradient, since kernels have none.

    Args:
        dtype: dtype of the tensors that are not compressed, and so of the computation; by default as saved.

    Raises:
        FileNotFoundError: the folder has no `sinq.json`, or lacks a file of tensors.
        ValueError: another format, a damaged file, an unknown edit, or missing or unexpected tensors.
    """
    from transformers import AutoConfig

    folder = Path(folder)
    if not (folder / LAYOUT).exists():
        raise FileNotFoundError(f"{folder} has no {LAYOUT}, so it is not a model saved by sinq.save")
    layout = json.loads((folder / LAYOUT).read_text())
    if layout["format"] not in (1, FORMAT):
        raise ValueError(
            f"{folder / LAYOUT} has format {layout['format']}; this version reads 1 and {FORMAT}"
        )
    tensors = _read(folder)
    config = AutoConfig.from_pretrained(folder)
    try:
        stored = edits_from_format_1(layout["places"], tensors) if layout["format"] == 1 else layout["edits"]
        changes = [edit_from_json(edit) for edit in stored]
        model = architecture(config, dtype or config.dtype, changes)
    except ValueError as error:
        raise ValueError(f"{folder / LAYOUT}: {error}") from error
    _fill(model, tensors, folder)
    _load_dense(model, tensors, folder)
    model.to(device)  # type: ignore[arg-type]
    return model.eval().requires_grad_(False)


def _read(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder, as views of its files."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with opened(path) as file:
            tensors |= {key: file.get_tensor(key) for key in list(file.keys())}
    return tensors


def _fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Move the tensors of compressed weights from `tensors` to their stores."""
    stores = [(name, module) for name, module in model.named_modules() if isinstance(module, WeightStore)]
    for name, store in stores:
        expected = store.value.state_dict()
        missing = [f"{name}.{key}" for key in expected if f"{name}.{key}" not in tensors]
        if missing:
            raise ValueError(f"{folder} does not match its {LAYOUT}: missing {missing[:LISTED]}")
        found = {key: tensors.pop(f"{name}.{key}") for key in expected}
        for key, tensor in found.items():
            if (tensor.dtype, tensor.shape) != (expected[key].dtype, expected[key].shape):
                given, wanted = (f"{t.dtype} {list(t.shape)}" for t in (tensor, expected[key]))
                raise ValueError(
                    f"{folder} does not match its {LAYOUT}: {name}.{key} is {given}, not {wanted}"
                )
        store.hold(store.value.with_tensors(found))


def _load_dense(model: "PreTrainedModel", tensors: dict[str, Tensor], folder: Path) -> None:
    """Load the tensors that are not compressed, without a copy where their dtype is the model's."""
    expected = model.state_dict(keep_vars=True)
    stores = {name for name, module in model.named_modules() if isinstance(module, WeightStore)}
    loaded = {id(expected[name]) for name in tensors if name in expected}
    missing = [
        name
        for name, tensor in expected.items()
        if name.rpartition(".")[0] not in stores and id(tensor) not in loaded
    ]
    unexpected = [name for name in tensors if name not in expected]
    misshapen = [name for name in tensors if name in expected and tensors[name].shape != expected[name].shape]
    if missing or unexpected or misshapen:
        wrong = f"missing {missing[:3]}, left over {unexpected[:3]}, of another shape {misshapen[:3]}"
        raise ValueError(f"the tensors of {folder} do not match its configuration: {wrong}")
    for name, tensor in tensors.items():
        expected[name].data = tensor.to(expected[name].dtype)  # the Parameter stays, and so do ties
