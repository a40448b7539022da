"""Descriptions of compressed weights in files: a value without its tensors, and back.

An edit holds what its value is, and the name, type and shape of each of its tensors. The content is in the
files of tensors. A description from elsewhere is data: it is made into a value with empty tensors, which has
all checks of a value, and compared with the matrix that it replaces.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from sinq.common.reading import counts, entry, shown
from sinq.formats.base import CompressedWeight, rebuilt, stored_as

LARGEST_TENSOR = 1 << 48
"""Numbers in a tensor are below this: a larger one is in no file."""
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}
"""Types of stored tensors by their names in files."""

StoredWeight = Mapping[str, Any]
"""A value without its tensors: the entries of `stored_as`, and `tensors`: name → [dtype, shape]."""


def describe_weight(value: CompressedWeight) -> dict[str, Any]:
    """Return a value without its tensors, as plain JSON values."""
    tensors = {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in value.state_dict().items()
    }
    return stored_as(value) | {"tensors": tensors}


def empty_weight(name: str, weight: StoredWeight, shape: tuple[int, int]) -> CompressedWeight:
    """Return the value that a file describes, with tensors on the meta device.

    Args:
        name: of the value, for messages.
        shape: (out, in) of the matrix that the value replaces.

    Raises:
        ValueError: the description makes no value, or one of another shape.
    """
    try:
        stored = entry(weight, "tensors", dict)
        value = rebuilt(weight, {key: _empty_tensor(key, stored[key]) for key in stored})
        if unknown := stored.keys() - value.state_dict().keys():
            raise ValueError(f"unknown tensors {', '.join(sorted(unknown))}")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if tuple(value.shape) != shape:
        found, wanted = ("×".join(map(str, pair)) for pair in (value.shape, shape))
        raise ValueError(f"{name} is compressed as {found}; the model has it as {wanted}")
    return value


def _empty_tensor(name: str, described: Any) -> Tensor:
    """Return a tensor on the meta device from [dtype, shape]."""
    known = isinstance(described, list) and len(described) == 2 and isinstance(described[0], str)
    if not known or described[0] not in DTYPES:
        raise ValueError(f"{name} is {shown(described)}; it must be a type and a shape")
    shape = counts(described[1], f"the shape of {name}")
    if prod(shape) >= LARGEST_TENSOR or max(shape, default=0) >= LARGEST_TENSOR:
        raise ValueError(f"{name} has the shape {shown(shape)}, which is no tensor's")
    return torch.empty(shape, dtype=DTYPES[described[0]], device="meta")
