"""What rounding to nearest loses: W − Ŵ, without the codes that methods which only compare errors would throw away."""

from importlib import import_module

import torch
from torch import Tensor

from sinq import rounding
from sinq.grid import Grid, Levels
from sinq.kernels.choice import Kernel, chosen
from sinq.kernels.quantize import reference_round_scaled
from sinq.tensor import QuantizedTensor

MODULES = {Kernel.cpu: "sinq.kernels.cpu_error"}


def rounding_error(weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, limit: Tensor | None = None) -> Tensor:
    """W minus what is read back after W / (row ⊗ col) was rounded to nearest and stored, float32 (out, in).

    Args:
        weight: (out, in).
        row_scale: (out, in / group_size), or None for 1.
        col_scale: (out / tile rows, in), or None for 1.
        limit: (out, in / group_size); what is rounded is first cut at ± this. None: it is not cut.
    """
    module = MODULES.get(chosen(weight.device))
    if module is None or grid.levels is not Levels.uniform or grid.symmetric:
        return reference_rounding_error(weight, row_scale, col_scale, grid, limit)
    fast = import_module(module)
    error, scale, zero = fast.divided(weight, row_scale, col_scale, grid, limit)
    codeless = torch.empty(0, dtype=torch.uint8)
    return fast.rounded_in_place(error, weight, scale, zero, _stored(codeless, weight, row_scale, col_scale, grid, scale, zero))


def reference_rounding_error(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, limit: Tensor | None
) -> Tensor:
    """The definition of `rounding_error`."""
    tried = weight if limit is None else rounding.cut(weight, row_scale, col_scale, limit)
    packed, scale, zero = reference_round_scaled(tried, row_scale, col_scale, grid)
    return weight.float() - _stored(packed, weight, row_scale, col_scale, grid, scale, zero).dequantize()


def _stored(
    packed: Tensor,
    weight: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    grid: Grid,
    scale: Tensor,
    zero: Tensor | None,
) -> QuantizedTensor:
    whole = scale if row_scale is None else scale * row_scale
    return QuantizedTensor.store_packed(packed, (weight.shape[0], weight.shape[1]), grid, whole, zero, col_scale=col_scale)
