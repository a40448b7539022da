"""Checkpoints of format 1, which named classes by their paths, read as edits.

    {"format": 1, "places": [
        {"name", "parameter", "values": [{"name", "kind": "sinq.tensor.QuantizedTensor", "config",
        "tensors"}]}
    ]}

Only paths in the table are known: any other path is refused, and none is ever imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sinq.common.reading import entry, typed

KINDS = {
    "sinq.tensor.QuantizedTensor": "scalar",
    "sinq.additive.AdditiveTensor": "additive",
    "sinq.columns.MixedColumns": "mixed_columns",
    "sinq.rotation.Rotated": "rotated",
    "sinq.sparse.SparseOutliers": "sparse_outliers",
}
"""Name of each class by its path in format 1."""


def edits_from_format_1(
    entries: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Return the layers of a layout of format 1 as edits of format 2.

    Args:
        entries: the layout's list "places".
        tensors: tensors of the checkpoint; format 1 does not store their shapes.

    Raises:
        ValueError: a path is not in the table, or a tensor is missing.
    """
    return [
        _edit(each, [_weight(value, tensors) for value in entry(each, "values", list)]) for each in entries
    ]


def _edit(content: Mapping[str, Any], weights: list[dict[str, Any]]) -> dict[str, Any]:
    name = entry(content, "name", str)
    if content.get("parameter") is not None:
        return {"name": "replace_experts", "version": 1, "parameter": name, "weights": weights}
    if len(weights) != 1:
        raise ValueError(f"{name} has {len(weights)} weights; a linear layer has one")
    return {"name": "replace_linear", "version": 1, "layer": name, "weight": weights[0]}


def _weight(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes, layer = {}, entry(value, "name", str)
    for name in entry(value, "tensors", list):
        tensor = tensors.get(f"{layer}.{name}")
        if tensor is None:
            raise ValueError(f"the checkpoint lacks {layer}.{name}")
        shapes[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
    return _named(entry(value, "kind", str), entry(value, "config", dict)) | {"tensors": shapes}


def _named(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the format and options of a weight under the name of its class."""
    if path not in KINDS:
        raise ValueError(f"{path!r} is not a kind of weight that format 1 had; it had {', '.join(KINDS)}")
    options = dict(config)
    if "kind" in options:  # a value around another one
        options["inner"] = _named(typed(options.pop("kind"), str, "kind"), entry(options, "inner", dict))
    return {"name": KINDS[path], "version": 1, "config": options}
