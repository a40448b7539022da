"""Quantizing in few passes over the weights: column scales, and rounding with them.

Definitions are here or in the module that has the mathematics; the fast versions take the same arguments. All
functions but those that compute column scales work on the matrix M = W / (row ⊗ col), which a fast version
never writes. Their arguments:

    weight       (out, in), any float type
    row_scale    (out, in / group_size), or None for 1
    col_scale    (out / tile rows, in), or None for 1
    grid         options of the rounding and the storage of M

They return packed codes (see `sinq/formats/packing.py`) with the scale and zero of each group of M, float32
(out, in / group_size).
"""

from torch import Tensor

from sinq.algorithms import half_quadratic, sinkhorn, solved_scales
from sinq.algorithms.half_quadratic import HalfQuadratic
from sinq.algorithms.solved_scales import Solved
from sinq.formats import rounding
from sinq.formats.grid import Grid, Levels
from sinq.formats.packing import pack
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.dispatch import fast


def _is_affine(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, *_: object
) -> bool:
    return grid.is_affine


def _is_uniform(
    weight: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, grid: Grid, *_: object
) -> bool:
    return grid.levels is Levels.uniform


def _has_norm_1(weight: Tensor, tile: tuple[int, int], norm: float = 1.0, passes: int = 2) -> bool:
    return norm == 1


sinkhorn_scales = fast(
    cpu="sinq.kernels.cpu.quantize:sinkhorn_scales",
    triton="sinq.kernels.triton.quantize:sinkhorn_scales",
)(sinkhorn.sinkhorn_scales)
"""Row and column scales of SINQ: see `sinq.algorithms.sinkhorn.sinkhorn_scales`."""

column_magnitudes = fast(cpu="sinq.kernels.cpu.solved:column_magnitudes", covers=_has_norm_1)(
    solved_scales.column_magnitudes
)
"""Column scales of refined SINQ: see `sinq.algorithms.solved_scales.column_magnitudes`."""


@fast(
    cpu="sinq.kernels.cpu.quantize:round_scaled",
    triton="sinq.kernels.triton.quantize:round_scaled",
    covers=_is_affine,
)
def round_scaled(
    weight: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    grid: Grid,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round M to nearest: `choose`, `assign` and `pack`. The zero is None where the grid is symmetric."""
    matrix = rounding.divide(weight.float(), row_scale, col_scale)
    scale, zero = rounding.choose(matrix, grid)
    return pack(rounding.assign(matrix, scale, zero, grid), grid.bits), scale, zero


@fast(cpu="sinq.kernels.cpu.refine:refine_scaled")
def refine_scaled(
    weight: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    grid: Grid,
    options: HalfQuadratic,
    round_zero: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round M with zeros that make the error sparse (HQQ): `inverse_scale`, `refine` and `pack`.

    Args:
        round_zero: start the refinement from zeros rounded to integers.
    """
    matrix = rounding.divide(weight.float(), row_scale, col_scale)
    inverse = half_quadratic.inverse_scale(matrix, grid)
    start = -rounding.by_group(matrix, grid.group_size).amin(-1) * inverse
    codes, zero = half_quadratic.refine(
        matrix, inverse, start.round() if round_zero else start, grid, options
    )
    return pack(codes, grid.bits), 1 / inverse, zero


@fast(cpu="sinq.kernels.cpu.solved:round_solved", covers=_is_uniform)
def round_solved(
    weight: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    grid: Grid,
    options: Solved,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round M with solved scales and zeros: `sinq.algorithms.solved_scales.round_solved` and `pack`."""
    matrix = rounding.divide(weight.float(), row_scale, col_scale)
    codes, scale, zero = solved_scales.round_solved(matrix, col_scale, grid, options)
    return pack(codes, grid.bits), scale, zero


@fast(cpu="sinq.kernels.cpu.error:rounding_error", covers=_is_affine)
def rounding_error(
    weight: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    grid: Grid,
    limit: Tensor | None = None,
) -> Tensor:
    """Return W − Ŵ, float32 (out, in), where Ŵ is M rounded to nearest, stored, and read back.

    Args:
        limit: (out, in / group_size); M is cut at ± limit before it is rounded. None: M is not cut.
    """
    clipped = weight if limit is None else rounding.cut(weight, row_scale, col_scale, limit)
    packed, scale, zero = round_scaled.definition(clipped, row_scale, col_scale, grid)
    shape = weight.shape[0], weight.shape[1]
    stored = QuantizedTensor.store_packed(
        packed, shape, grid, scale, zero, row_scale=row_scale, col_scale=col_scale
    )
    return weight.float() - stored.dequantize()
