"""HQQ's refinement of zero-points, in one pass over the weights for each step."""

from importlib import import_module

import torch
from torch import Tensor

from sinq import half_quadratic, rounding
from sinq.grid import Grid
from sinq.half_quadratic import HalfQuadratic
from sinq.kernels.choice import Kernel, chosen
from sinq.packing import pack

MODULES = {Kernel.cpu: "sinq.kernels.cpu_refine"}


def refine_scaled(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, options: HalfQuadratic, round_zero: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Round W / (row ⊗ col) with zeros that make the error sparse: `inverse_scale`, `refine` and `pack`.

    Args:
        weight: (out, in).
        row_scale: (out, in / group_size), or None for 1.
        col_scale: (out / tile rows, in), or None for 1.
        round_zero: whether to start from whole zeros.

    Returns:
        packed codes (see `packing.py`), and scale and zero of the divided matrix, float32 (out, in / group_size).
    """
    module = MODULES.get(chosen(weight.device))
    refined = reference_refine_scaled if module is None else import_module(module).refine_scaled
    return refined(weight, row_scale, col_scale, grid, options, round_zero)


def reference_refine_scaled(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, options: HalfQuadratic, round_zero: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `refine_scaled`."""
    matrix = rounding.divide(weight.float(), row_scale, col_scale)
    inverse = half_quadratic.inverse_scale(matrix, grid)
    start = -rounding.by_group(matrix, grid.group_size).amin(-1) * inverse
    codes, zero = half_quadratic.refine(matrix, inverse, torch.round(start) if round_zero else start, grid, options)
    return pack(codes, grid.bits), 1 / inverse, zero
