"""Quantizing: the scales of SINQ, and rounding with them, in one pass over the weights each."""

from importlib import import_module
from types import ModuleType

from torch import Tensor

from sinq import rounding, sinkhorn
from sinq.grid import Grid, Levels
from sinq.kernels.choice import Kernel, chosen
from sinq.packing import pack
from sinq.sinkhorn import Sinkhorn

MODULES = {Kernel.cpu: "sinq.kernels.cpu_quantize", Kernel.triton: "sinq.kernels.triton_quantize"}


def sinkhorn_scales(weight: Tensor, tile: tuple[int, int], options: Sinkhorn | None = None) -> tuple[Tensor, Tensor]:
    """`sinq.sinkhorn.sinkhorn_scales` by the kernel of the device: see there."""
    options, fast = options or Sinkhorn(), _fast(weight)
    return sinkhorn.sinkhorn_scales(weight, tile, options) if fast is None else fast.sinkhorn_scales(weight, tile, options)


def round_scaled(weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round W / (row ⊗ col) to nearest: `choose`, `assign` and `pack`.

    Args:
        weight: (out, in).
        row_scale: (out, in / group_size), or None for 1.
        col_scale: (out / tile rows, in), or None for 1.

    Returns:
        packed codes (see `packing.py`), and scale and zero of the divided matrix, float32 (out, in / group_size); zero None if symmetric.
    """
    fast = _fast(weight)
    if fast is None or grid.levels is not Levels.uniform or grid.symmetric:
        return reference_round_scaled(weight, row_scale, col_scale, grid)
    return fast.round_scaled(weight, row_scale, col_scale, grid)


def reference_round_scaled(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The definition of `round_scaled`."""
    matrix = rounding.divide(weight.float(), row_scale, col_scale)
    scale, zero = rounding.choose(matrix, grid)
    return pack(rounding.assign(matrix, scale, zero, grid), grid.bits), scale, zero


def _fast(weight: Tensor) -> ModuleType | None:
    kernel = chosen(weight.device)
    return None if kernel is Kernel.reference else import_module(MODULES[kernel])
