"""Saving and loading a compressed model: safetensors for tensors, JSON for the rest.

    folder/
      config.json          the model's own Hugging Face configuration (the architecture)
      sinq.json            per compressed place: the kind of its values and their configurations
      model.safetensors    every stored tensor once; a compressed layer's tensors are `<layer>.weight.<tensor>`

`stream.py` writes the same, its tensors in several files, as Hugging Face does: `model-00001-of-00032.safetensors` …, and
`model.safetensors.index.json` to say which tensor is in which.

What is loaded is bit for bit what was saved: packed codes and scales are never decoded and encoded again. On a CPU they are not even
copied: files are memory-mapped (privately: writing to a tensor does not change the file), and every tensor whose dtype is the one
wanted is a view of its file. Memory is taken as pages are touched, and shared with other processes that load the same model.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from sinq.files import replacing
from sinq.layers import Target
from sinq.linear import CompressedExperts, CompressedLinear, WeightStore
from sinq.source import INDEX, TENSORS, opened, weight_files
from sinq.tensor import CompressedWeight, kind_of, kind_path

FORMAT = 1
LAYOUT = "sinq.json"

Entry = dict[str, Any]
"""One compressed place, as `sinq.json` describes it."""


def stored_tensors(model: nn.Module, dense_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Exactly what `save` writes: every parameter and persistent buffer once, shared ones under their first name.

    Args:
        dense_dtype: the dtype of floating-point tensors that are not compressed (say, the one they were loaded from);
            by default as they are in memory.
    """
    stores = {name for name, module in model.named_modules() if isinstance(module, WeightStore)}
    seen = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        cast = dense_dtype is not None and tensor.is_floating_point() and name.rpartition(".")[0] not in stores
        tensors[name] = tensor.to(dense_dtype) if cast else tensor
    return tensors


def save(model: PreTrainedModel, folder: str | Path, dense_dtype: torch.dtype | None = None) -> None:
    """Write a model with compressed layers to a folder, which is made if missing. See `stored_tensors` for `dense_dtype`.

    Raises:
        ValueError: the folder holds a model in several files, which would stay beside the new one.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise ValueError(f"{folder} holds a model in several files ({INDEX}); save to another folder, or delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    save_config(model.config, dense_dtype or model.dtype, folder)
    save_tensors(stored_tensors(model, dense_dtype), folder / TENSORS)
    save_layout(_places(model), folder)


def save_config(config: PretrainedConfig, dtype: torch.dtype, folder: Path) -> None:
    """Write the architecture, and the dtype of what is not compressed."""
    copied = type(config).from_dict(config.to_dict())
    copied.dtype = dtype
    copied.save_pretrained(folder)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all. Tensors may be views of the file it replaces."""
    with replacing(path) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, metadata={"format": "pt"})


def save_layout(places: Sequence[Entry], folder: Path) -> None:
    """Write what `load` begins with."""
    with replacing(folder / LAYOUT) as scratch:
        scratch.write_text(json.dumps({"format": FORMAT, "places": list(places)}, indent=1))


def load(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Read a model that `save` or `stream` wrote, for inference: no parameter asks for a gradient (kernels have none).

    Args:
        dtype: of the tensors that are not compressed, and so of the computation; by default as saved.

    Raises:
        FileNotFoundError: the folder has no `sinq.json`, or lacks a file of tensors.
        ValueError: another format, a damaged file, or tensors missing or left over.
    """
    folder = Path(folder)
    if not (folder / LAYOUT).exists():
        raise FileNotFoundError(f"{folder} has no {LAYOUT}, so it is not a model saved by sinq.save")
    layout = json.loads((folder / LAYOUT).read_text())
    if layout["format"] != FORMAT:
        raise ValueError(f"{folder / LAYOUT} has format {layout['format']}; this version reads {FORMAT}")
    config = AutoConfig.from_pretrained(folder)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or config.dtype)
    tensors = _read(folder)
    for place in layout["places"]:
        _restore(model, place, tensors, folder)
    _load_dense(model, tensors, folder)
    return model.to(device).eval().requires_grad_(False)


def entry(name: str, parameter: str | None, values: Sequence[CompressedWeight]) -> Entry:
    """What `sinq.json` says of a place: see `Target` for `name` and `parameter`."""
    names = [f"{name}.weight"] if parameter is None else [f"{name}.{index}" for index in range(len(values))]
    return {"name": name, "parameter": parameter, "values": [_describe(n, value) for n, value in zip(names, values, strict=True)]}


def entry_tensors(described: Entry, values: Sequence[CompressedWeight]) -> dict[str, Tensor]:
    """The tensors of a place, under the names they are stored by."""
    pairs = zip(described["values"], values, strict=True)
    return {f"{part['name']}.{key}": tensor for part, value in pairs for key, tensor in value.state_dict().items()}


def _places(model: nn.Module) -> list[Entry]:
    places = []
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear):
            places.append(entry(name, None, [module.weight.value]))
        elif isinstance(module, CompressedExperts):
            places.append(entry(name, name.rpartition(".")[2], [store.value for store in module.stores()]))
    return places


def _describe(name: str, value: CompressedWeight) -> dict[str, Any]:
    return {"name": name, "kind": kind_path(value), "config": value.config(), "tensors": sorted(value.state_dict())}


def _read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, as views of its files."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with opened(path) as file:
            tensors |= {key: file.get_tensor(key) for key in list(file.keys())}
    return tensors


def _restore(model: nn.Module, place: Entry, tensors: dict[str, Tensor], folder: Path) -> None:
    values = []
    for part in place["values"]:
        names = {key: f"{part['name']}.{key}" for key in part["tensors"]}
        missing = [name for name in names.values() if name not in tensors]
        if missing:
            raise ValueError(f"{folder} does not match its {LAYOUT}: missing {missing[:3]}")
        values.append(kind_of(part["kind"]).from_state(part["config"], {key: tensors.pop(name) for key, name in names.items()}))
    owner = place["name"].rpartition(".")[0] if place["parameter"] else place["name"]
    Target(place["name"], model.get_submodule(owner), place["parameter"]).replace(model, values)


def _load_dense(model: PreTrainedModel, tensors: dict[str, Tensor], folder: Path) -> None:
    """Give the tensors that are not compressed to the model, without a copy where their dtype is the model's."""
    model.tie_weights()
    own = model.state_dict(keep_vars=True)
    stores = {name for name, module in model.named_modules() if isinstance(module, WeightStore)}
    loaded = {id(own[name]) for name in tensors if name in own}
    missing = [name for name, tensor in own.items() if name.rpartition(".")[0] not in stores and id(tensor) not in loaded]
    unexpected = [name for name in tensors if name not in own]
    misshapen = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    if missing or unexpected or misshapen:
        wrong = f"missing {missing[:3]}, left over {unexpected[:3]}, of another shape {misshapen[:3]}"
        raise ValueError(f"the tensors of {folder} do not match its configuration: {wrong}")
    for name, tensor in tensors.items():
        own[name].data = tensor.to(own[name].dtype)  # of the same Parameter, so ties stay
