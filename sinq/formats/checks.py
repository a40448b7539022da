"""Checks of a value when it is made: names, types, shapes and numbers of the tensors.

Compiled kernels read a tensor from its address, with the sizes that the format implies. They are entered only
with values, and a value exists only if its tensors have these sizes. Checks of structure cost no look at the
numbers. Numbers are read where they would be used as an index, and once to see that floats are finite. They
are not read on the meta device, nor while a value is trained: its tensors then come from a checked value.

A number that is stored as float16 may be held as float32 in memory, for training.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sinq.common.reading import counts, shown

DTypes = torch.dtype | tuple[torch.dtype, ...]
"""The types that a tensor may have."""
HALF = (torch.float16, torch.float32)
"""Types of a number that is stored as float16: as stored, and as trained."""
LARGEST = 1 << 31
"""Rows and columns are below this, so that offsets in a matrix fit in 64 bits."""


def matrix_shape(config: Any) -> tuple[int, int]:
    """Return the shape (out, in) that a file gives.

    Raises:
        ValueError: it is not two whole numbers from 1 to 2³¹.
    """
    numbers = counts(config, "shape")
    if len(numbers) != 2 or not all(0 < number < LARGEST for number in numbers):
        raise ValueError(f"shape is {shown(config)}; it must be two whole numbers from 1 to 2^31")
    return numbers[0], numbers[1]


def require_names(
    kind: str, found: Mapping[str, Tensor], required: Sequence[str], optional: Any = ()
) -> None:
    """Raise `ValueError` if a value lacks tensors, has unknown ones, or has them on several devices."""
    missing = [name for name in required if name not in found]
    unknown = [name for name in found if name not in {*required, *optional}]
    if missing or unknown:
        raise ValueError(f"a {kind} weight has the tensors {', '.join(found)}: {_wrong(missing, unknown)}")
    devices = sorted({str(tensor.device) for tensor in found.values()})
    if len(devices) > 1:
        raise ValueError(f"a {kind} weight has its tensors on several devices: {', '.join(devices)}")


def _wrong(missing: list[str], unknown: list[str]) -> str:
    parts = [
        f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names
    ]
    return "; ".join(parts)


def require_tensor(name: str, tensor: Tensor, dtypes: DTypes, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` if a tensor has another type or shape, or gaps between its numbers."""
    accepted = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if tensor.dtype not in accepted or tensor.shape != shape:
        wanted = " or ".join(_short(dtype) for dtype in accepted)
        raise ValueError(
            f"{name} is {_short(tensor.dtype)} {list(tensor.shape)}; it must be {wanted} {list(shape)}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` if a floating-point tensor has a NaN or an infinity."""
    floats = {
        name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()
    }
    if not floats:
        return
    bounds = [bound for tensor in floats.values() for bound in torch.aminmax(tensor)]  # NaN if any is NaN
    numbers = torch.stack(bounds).tolist()  # a device is asked once
    for name, low, high in zip(floats, numbers[::2], numbers[1::2], strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name} has NaN or Inf; it must be finite")


def has_numbers(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the numbers of a value can and need be checked."""
    return not any(tensor.is_meta or tensor.requires_grad for tensor in tensors.values())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
