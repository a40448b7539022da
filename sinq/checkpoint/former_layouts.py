"""Checkpoints of format 1, which named classes by their paths, read as edits.

    {"format": 1, "places": [{"name", "parameter", "values": [{"name", "kind": "sinq.tensor.QuantizedTensor", "config", "tensors"}]}]}

The table is all there is to know: a path that is not in it is refused, and none is ever imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

KINDS = {
    "sinq.tensor.QuantizedTensor": "scalar",
    "sinq.additive.AdditiveTensor": "additive",
    "sinq.columns.MixedColumns": "mixed_columns",
    "sinq.rotation.Rotated": "rotated",
    "sinq.sparse.SparseOutliers": "sparse_outliers",
}
"""Path of a class at format 1 → its name."""


def from_places(places: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return the places of a layout of format 1 as edits of format 2.

    Args:
        tensors: those of the checkpoint, which format 1 does not give the shapes of.

    Raises:
        ValueError: a path is not in the table, or a tensor is missing.
    """
    return [_edit(place, [_weight(value, tensors) for value in place["values"]]) for place in places]


def _edit(place: Mapping[str, Any], weights: list[dict[str, Any]]) -> dict[str, Any]:
    if place["parameter"] is None:
        return {"name": "replace_linear", "version": 1, "layer": place["name"], "weight": weights[0]}
    return {"name": "replace_experts", "version": 1, "parameter": place["name"], "weights": weights}


def _weight(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = {}
    for name in value["tensors"]:
        tensor = tensors.get(f"{value['name']}.{name}")
        if tensor is None:
            raise ValueError(f"the checkpoint lacks {value['name']}.{name}")
        shapes[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
    return _named(value["kind"], value["config"]) | {"tensors": shapes}


def _named(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    if path not in KINDS:
        raise ValueError(f"{path!r} is not a kind of weight that format 1 had; it had {', '.join(KINDS)}")
    own = dict(config)
    if "kind" in own:  # a value around another one
        own["inner"] = _named(own.pop("kind"), own["inner"])
    return {"name": KINDS[path], "version": 1, "config": own}
