"""Scalar quantizers in two halves: normalize a matrix, then round it. Methods that scale weights put their work between the halves.

    normalized = inner.normalize(weight)                       # SINQ: the Sinkhorn scales; RTN, HQQ: nothing
    quantized = inner.round(normalized.scaled_by(channel))     # AWQ: tries many channel scales on one normalized matrix

What does not depend on the channel scale is thus done once, whatever the inner method is.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from sinq.algorithms.half_quadratic import HalfQuadratic
from sinq.algorithms.unbiased_scales import Unbiased
from sinq.formats.grid import Grid
from sinq.formats.rounding import cut, divide
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels import refine_scaled, round_scaled, round_unbiased, rounding_error
from sinq.methods.base import LayerMethod


@dataclass(frozen=True, eq=False)
class Normalized:
    """W and the scales it is divided by before it is rounded; a scale that is None is 1."""

    weight: Tensor
    """float32 (out, in)."""
    row_scale: Tensor | None = None
    """(out, in / group_size)"""
    col_scale: Tensor | None = None
    """(out / tile rows, in)"""
    notes: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def matrix(self) -> Tensor:
        """float32 (out, in), what is rounded: W / (row ⊗ col)."""
        return divide(self.weight, self.row_scale, self.col_scale)

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def scaled_by(self, channel: Tensor) -> "Normalized":
        """Column j of the matrix times channel[j], (in,), undone in `col_scale`: the same W, rounded differently."""
        return replace(
            self, col_scale=1 / channel[None] if self.col_scale is None else self.col_scale / channel
        )

    def cut_at(self, limit: Tensor) -> "Normalized":
        """With every group of a row of the matrix cut at ± its limit, (out, in / group_size)."""
        return replace(self, weight=cut(self.weight, self.row_scale, self.col_scale, limit))

    def rounded(self, grid: Grid) -> QuantizedTensor:
        """Round the matrix to nearest (without writing it to memory, where a fast kernel runs): the quantized W."""
        packed, scale, zero = round_scaled(self.weight, self.row_scale, self.col_scale, grid)
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

    def refined(self, grid: Grid, options: HalfQuadratic, round_zero: bool = False) -> QuantizedTensor:
        """Round with zeros refined by HQQ's steps; from whole ones if `round_zero`."""
        packed, scale, zero = refine_scaled(
            self.weight, self.row_scale, self.col_scale, grid, options, round_zero
        )
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

    def unbiased(self, grid: Grid, options: Unbiased) -> QuantizedTensor:
        """Round with scales and zeros that leave no error along a group's weights, nor along a constant."""
        packed, scale, zero = round_unbiased(self.weight, self.row_scale, self.col_scale, grid, options)
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
    """A calibration-free quantizer that gives a `QuantizedTensor`. Subclasses write `round`, and `normalize` if they do."""

    def normalize(self, weight: Tensor) -> Normalized:
        """The part that does not depend on how columns are scaled afterwards."""
        return Normalized(weight)

    @abstractmethod
    def round(self, normalized: Normalized) -> QuantizedTensor:
        """Choose scales, zeros and codes for the normalized matrix."""

    def only_rounds(self, normalized: Normalized) -> bool:
        """Whether `round` is `Normalized.rounded`, whose error is found without storing anything."""
        return False

    def error(self, normalized: Normalized, limit: Tensor | None = None) -> Tensor:
        """W − Ŵ, float32 (out, in), of the normalized matrix rounded, or cut at ± limit (out, in / group_size) and then rounded."""
        if self.only_rounds(normalized):
            return rounding_error(
                normalized.weight, normalized.row_scale, normalized.col_scale, self.grid, limit
            )
        return (
            normalized.weight
            - self.round(normalized if limit is None else normalized.cut_at(limit)).dequantize()
        )

    def quantize(self, weight: Tensor, statistic: None = None) -> QuantizedTensor:
        return self.round(self.normalize(weight))
