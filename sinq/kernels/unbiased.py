"""Refined SINQ: its column scales and its rounding, in a few passes over the weights."""

from importlib import import_module

from torch import Tensor

from sinq import rounding, unbiased
from sinq.grid import Grid, Levels
from sinq.kernels.choice import Kernel, chosen
from sinq.packing import pack
from sinq.unbiased import Unbiased

MODULES = {Kernel.cpu: "sinq.kernels.cpu_unbiased"}


def column_magnitudes(weight: Tensor, tile: tuple[int, int], norm: float = 1.0, passes: int = 2) -> Tensor:
    """`sinq.unbiased.column_magnitudes` by the kernel of the device: see there. Only norm 1 has a fast one."""
    module = MODULES.get(chosen(weight.device))
    if module is None or norm != 1:
        return unbiased.column_magnitudes(weight, tile, norm, passes)
    return import_module(module).column_magnitudes(weight, tile, passes)


def round_unbiased(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, options: Unbiased
) -> tuple[Tensor, Tensor, Tensor]:
    """Round W / (row ⊗ col) with unbiased scales and zeros: `sinq.unbiased.round_unbiased` and `pack`.

    Args:
        weight: (out, in).
        row_scale: (out, in / group_size), or None for 1.
        col_scale: (out / tile rows, in), or None for 1.

    Returns:
        packed codes (see `packing.py`), and scale and zero of the divided matrix, float32 (out, in / group_size).
    """
    module = MODULES.get(chosen(weight.device))
    if module is None or grid.levels is not Levels.uniform:
        return reference_round_unbiased(weight, row_scale, col_scale, grid, options)
    return import_module(module).round_unbiased(weight, row_scale, col_scale, grid, options)


def reference_round_unbiased(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, options: Unbiased
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `round_unbiased`."""
    matrix = rounding.divide(weight.float(), row_scale, col_scale)
    codes, scale, zero = unbiased.round_unbiased(matrix, col_scale, grid, options)
    return pack(codes, grid.bits), scale, zero
