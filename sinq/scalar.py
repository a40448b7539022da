"""Scalar quantizers in two halves: normalize a matrix, then round it. Methods that scale weights put their work between the halves.

    normalized = inner.normalize(weight)                       # SINQ: the Sinkhorn scales; RTN, HQQ: nothing
    quantized = inner.round(normalized.scaled_by(channel))     # AWQ: tries many channel scales on one normalized matrix

What does not depend on the channel scale is thus done once, whatever the inner method is.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from sinq.grid import Grid
from sinq.method import LayerMethod
from sinq.tensor import QuantizedTensor


@dataclass(frozen=True, eq=False)
class Normalized:
    """W = matrix · row_scale · col_scale, elementwise; a scale that is None is 1."""

    matrix: Tensor
    """float32 (out, in), what is rounded."""
    row_scale: Tensor | None = None
    """(out, in / group_size)"""
    col_scale: Tensor | None = None
    """(out / tile rows, in)"""
    notes: Mapping[str, float] = field(default_factory=dict)

    def scaled_by(self, channel: Tensor) -> "Normalized":
        """Column j of the matrix times channel[j], (in,), undone in `col_scale`: the same W, rounded differently."""
        undone = 1 / channel[None] if self.col_scale is None else self.col_scale / channel
        return replace(self, matrix=self.matrix * channel, col_scale=undone)

    def store(self, codes: Tensor, grid: Grid, scale: Tensor, zero: Tensor | None) -> QuantizedTensor:
        """The quantized W, from codes, scales and zeros of the matrix."""
        whole = scale if self.row_scale is None else scale * self.row_scale
        return QuantizedTensor.store(codes, grid, whole, zero, col_scale=self.col_scale, notes=self.notes)


class ScalarMethod(LayerMethod):
    """A calibration-free quantizer that gives a `QuantizedTensor`. Subclasses write `round`, and `normalize` if they do."""

    def normalize(self, weight: Tensor) -> Normalized:
        """The part that does not depend on how columns are scaled afterwards."""
        return Normalized(weight)

    @abstractmethod
    def round(self, normalized: Normalized) -> QuantizedTensor:
        """Choose scales, zeros and codes for the normalized matrix."""

    def quantize(self, weight: Tensor, statistic: None = None) -> QuantizedTensor:
        return self.round(self.normalize(weight))
