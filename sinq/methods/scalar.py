"""Scalar quantizers in two halves: normalize a matrix, then round it.

    normalized = inner.normalize(weight)                     # SINQ: the Sinkhorn scales; RTN, HQQ: nothing
    quantized = inner.round(normalized.scaled_by(channel))   # AWQ: many channel scales, one normalized matrix

Methods that scale weights work between the halves. Everything that does not depend on the channel scale is
thus done once, whatever the inner method is.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from sinq.algorithms.half_quadratic import HalfQuadratic
from sinq.algorithms.solved_scales import Solved
from sinq.formats.grid import Grid
from sinq.formats.rounding import cut, divide
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels import refine_scaled, round_scaled, round_solved, rounding_error
from sinq.methods.base import LayerMethod


@dataclass(frozen=True, eq=False)
class Normalized:
    """A weight W and the scales that divide it before rounding; a scale that is None is 1."""

    weight: Tensor
    """float32 (out, in)."""
    row_scale: Tensor | None = None
    """(out, in / group_size)"""
    col_scale: Tensor | None = None
    """(out / tile rows, in)"""
    notes: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def matrix(self) -> Tensor:
        """The matrix that is rounded, W / (row ⊗ col): float32 (out, in)."""
        return divide(self.weight, self.row_scale, self.col_scale)

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def scaled_by(self, channel: Tensor) -> "Normalized":
        """Multiply column j of the matrix by channel[j], (in,), and divide `col_scale` by it: W stays."""
        col_scale = 1 / channel[None] if self.col_scale is None else self.col_scale / channel
        return replace(self, col_scale=col_scale)

    def cut_at(self, limit: Tensor) -> "Normalized":
        """Cut every group of a row of the matrix at ± its limit, (out, in / group_size)."""
        return replace(self, weight=cut(self.weight, self.row_scale, self.col_scale, limit))

    def rounded(self, grid: Grid) -> QuantizedTensor:
        """Round the matrix to nearest: the quantized W. Fast kernels never write the matrix to memory."""
        packed, scale, zero = round_scaled(self.weight, self.row_scale, self.col_scale, grid)
        return self._store(grid, packed, scale, zero)

    def refined(self, grid: Grid, options: HalfQuadratic, round_zero: bool = False) -> QuantizedTensor:
        """Round with zeros refined by HQQ's steps, which start from whole zeros if `round_zero`."""
        packed, scale, zero = refine_scaled(
            self.weight, self.row_scale, self.col_scale, grid, options, round_zero
        )
        return self._store(grid, packed, scale, zero)

    def solved(self, grid: Grid, options: Solved) -> QuantizedTensor:
        """Round with scales and zeros solved for; see `sinq.algorithms.solved_scales.round_solved`."""
        packed, scale, zero = round_solved(self.weight, self.row_scale, self.col_scale, grid, options)
        return self._store(grid, packed, scale, zero)

    def _store(self, grid: Grid, packed: Tensor, scale: Tensor, zero: Tensor | None) -> QuantizedTensor:
        """Build the quantized W from packed codes, scales and zeros of the groups."""
        return QuantizedTensor.store_packed(
            packed,
            self.shape,
            grid,
            scale,
            zero,
            row_scale=self.row_scale,
            col_scale=self.col_scale,
            notes=self.notes,
        )


class ScalarMethod(LayerMethod):
    """A calibration-free quantizer that returns a `QuantizedTensor`.

    Subclasses write `round`, and `normalize` if they scale the matrix first.
    """

    def normalize(self, weight: Tensor) -> Normalized:
        """Scale a weight (out, in), independently of later column scales. The default scales nothing."""
        return Normalized(weight)

    @abstractmethod
    def round(self, normalized: Normalized) -> QuantizedTensor:
        """Choose scales, zeros and codes for the normalized matrix."""

    def only_rounds(self, normalized: Normalized) -> bool:
        """Return True if `round` is `Normalized.rounded`, whose error needs no stored tensor."""
        return False

    def error(self, normalized: Normalized, limit: Tensor | None = None) -> Tensor:
        """Return W − Ŵ, float32 (out, in), of rounding the normalized matrix.

        Args:
            limit: cut each group at ± this first, (out, in / group_size).
        """
        if self.only_rounds(normalized):
            return rounding_error(
                normalized.weight, normalized.row_scale, normalized.col_scale, self.grid, limit
            )
        limited = normalized if limit is None else normalized.cut_at(limit)
        return normalized.weight - self.round(limited).dequantize()

    def quantize(self, weight: Tensor, statistic: None = None) -> QuantizedTensor:
        return self.round(self.normalize(weight))
