"""Saving and loading a compressed model: safetensors for tensors, JSON for the rest.

    folder/
      config.json          the model's own Hugging Face configuration (the architecture)
      sinq.json            per compressed place: the kind of its values and their configurations
      model.safetensors    every stored tensor once; a compressed layer's tensors are `<layer>.weight.<tensor>`

What is loaded is bit for bit what was saved: packed codes and scales are never decoded and encoded again.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from sinq.layers import Target
from sinq.linear import CompressedExperts, CompressedLinear, WeightStore
from sinq.tensor import CompressedWeight, kind_of, kind_path

FORMAT = 1
TENSORS, LAYOUT = "model.safetensors", "sinq.json"


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
    """Write a model with compressed layers to a folder, which is made if missing. See `stored_tensors` for `dense_dtype`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = type(model.config).from_dict(model.config.to_dict())
    config.dtype = dense_dtype or model.dtype
    config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in stored_tensors(model, dense_dtype).items()}, folder / TENSORS)
    (folder / LAYOUT).write_text(json.dumps({"format": FORMAT, "places": _places(model)}, indent=1))


def load(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Read a model that `save` wrote.

    Args:
        dtype: of the tensors that are not compressed, and so of the computation; by default as saved.

    Raises:
        FileNotFoundError: the folder has no `sinq.json`.
        ValueError: another format, or tensors missing or left over.
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
    tensors = load_file(folder / TENSORS)
    for place in layout["places"]:
        _restore(model, place, tensors)
    _load_dense(model, tensors, folder)
    return model.to(device).eval()


def _places(model: nn.Module) -> list[dict[str, Any]]:
    places = []
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear):
            places.append({"name": name, "parameter": None, "values": [_describe(f"{name}.weight", module.weight.value)]})
        elif isinstance(module, CompressedExperts):
            values = [_describe(f"{name}.{index}", store.value) for index, store in enumerate(module.stores())]
            places.append({"name": name, "parameter": name.rpartition(".")[2], "values": values})
    return places


def _describe(name: str, value: CompressedWeight) -> dict[str, Any]:
    return {"name": name, "kind": kind_path(value), "config": value.config(), "tensors": sorted(value.state_dict())}


def _restore(model: nn.Module, place: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    values = []
    for entry in place["values"]:
        state = {key: tensors.pop(f"{entry['name']}.{key}") for key in entry["tensors"]}
        values.append(kind_of(entry["kind"]).from_state(entry["config"], state))
    owner = place["name"].rpartition(".")[0] if place["parameter"] else place["name"]
    Target(place["name"], model.get_submodule(owner), place["parameter"]).replace(model, values)


def _load_dense(model: PreTrainedModel, tensors: dict[str, Tensor], folder: Path) -> None:
    model.tie_weights()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    own = model.state_dict(keep_vars=True)
    loaded = {own[name].data_ptr() for name in tensors if name in own}
    stores = {name for name, module in model.named_modules() if isinstance(module, WeightStore)}
    missing = [n for n in missing if n.rpartition(".")[0] not in stores and own[n].data_ptr() not in loaded]
    if missing or unexpected:
        raise ValueError(f"{folder / TENSORS} does not match its configuration: missing {missing[:3]}, left over {unexpected[:3]}")
