"""Scalar quantizers in two halves: normalize a matrix, then round it.

    normalized = inner.normalize(weight)                     # SINQ: the Sinkhorn scales; RTN, HQQ: nothing
    quantized = inner.round(normalized.scaled_by(channel))   # AWQ: many channel scales, one normalized matrix

Methods that scale weights work between the halves. Everything that does not depend on the channel scale is
thus done once, whatever the inner method is. Rounding itself is in two halves too: `choose` returns codes,
scales and zeros of the groups, and `Normalized.store` makes the stored value of them, so that a method such
as GPTQ can choose other codes between.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from sinq.algorithms.half_quadratic import HalfQuadratic
from sinq.algorithms.solved_scales import Solved
from sinq.formats.base import CompressedWeight
from sinq.formats.grid import Grid
from sinq.formats.rounding import cut, divide
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels import refine_scaled, round_scaled, round_solved, rounding_error
from sinq.methods.base import LayerMethod

Groups = tuple[Tensor, Tensor, Tensor | None]
"""Packed codes of a normalized matrix (out, in), and scale and zero of its groups, (out, in / group_size).

The zero is None if the grid is symmetric.
"""


@dataclass(frozen=True, eq=False)
class Normalized:
    """A weight W and the scales that divide it before rounding; a scale that is None is 1."""

    weight: Tensor
    """float32 (out, in)."""
    row_scale: Tensor | None = None
    """(out, in / group_size)"""
    col_scale: Tensor | None = None
    """(out / tile rows, in)"""
    importance: Tensor | None = None
    """Weights of the input columns in errors, (in,), for methods that weigh them; None: all are equal."""
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

    def rounded(self, grid: Grid) -> Groups:
        """Round the matrix to nearest. Fast kernels never write the matrix to memory."""
        return round_scaled(self.weight, self.row_scale, self.col_scale, grid)

    def refined(self, grid: Grid, options: HalfQuadratic, round_zero: bool = False) -> Groups:
        """Round with zeros refined by HQQ's steps, which start from whole zeros if `round_zero`."""
        return refine_scaled(self.weight, self.row_scale, self.col_scale, grid, options, round_zero)

    def solved(self, grid: Grid, options: Solved) -> Groups:
        """Round with scales and zeros solved for; see `sinq.algorithms.solved_scales.round_solved`."""
        return round_solved(self.weight, self.row_scale, self.col_scale, grid, options)

    def store(
        self, grid: Grid, packed: Tensor, scale: Tensor, zero: Tensor | None, notes: Mapping[str, float] = {}
    ) -> QuantizedTensor:
        """Build the quantized W from packed codes, scales and zeros of the groups, with further notes."""
        return QuantizedTensor.store_packed(
            packed,
            self.shape,
            grid,
            scale,
            zero,
            row_scale=self.row_scale,
            col_scale=self.col_scale,
            notes={**self.notes, **notes},
        )

    def rows(self, which: slice, tile: int) -> "Normalized":
        """Return the rows of one tile, without notes."""
        row_scale = None if self.row_scale is None else self.row_scale[which]
        col_scale = None if self.col_scale is None else self.col_scale[tile : tile + 1]
        return Normalized(self.weight[which], row_scale, col_scale, self.importance)

    def columns(self, which: Tensor, groups: Sequence[int]) -> "Normalized":
        """Return some columns of the matrix, without notes.

        Args:
            which: their indices, int64, in groups that follow each other.
            groups: numbers of these groups.
        """
        row_scale = None if self.row_scale is None else self.row_scale[:, groups]
        col_scale = None if self.col_scale is None else self.col_scale[:, which]
        importance = None if self.importance is None else self.importance[which]
        return Normalized(self.weight[:, which], row_scale, col_scale, importance)


class NormalizingMethod(LayerMethod):
    """A method that scales a matrix, rounds it in groups, and stores a `QuantizedTensor`."""

    @abstractmethod
    def prepare(self, weights: Sequence[Tensor], statistic: Any) -> list[Normalized]:
        """Scale weights (out, in) that share inputs and a statistic."""

    @abstractmethod
    def choose(self, normalized: Normalized) -> Groups:
        """Choose codes, scales and zeros for a normalized matrix."""

    def only_rounds(self, normalized: Normalized) -> bool:
        """Return True if `choose` is `Normalized.rounded`, whose error needs no stored tensor."""
        return False

    def round(self, normalized: Normalized) -> QuantizedTensor:
        """Return the stored value of a normalized matrix."""
        return normalized.store(self.grid, *self.choose(normalized))

    def quantize(self, weight: Tensor, statistic: Any = None) -> QuantizedTensor:
        return self.round(self.prepare([weight], statistic)[0])

    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]:
        return [self.round(normalized) for normalized in self.prepare(weights, statistic)]


class ScalarMethod(NormalizingMethod):
    """A calibration-free quantizer that returns a `QuantizedTensor`.

    Subclasses write `choose`, and `normalize` if they scale the matrix first.
    """

    def normalize(self, weight: Tensor) -> Normalized:
        """Scale a weight (out, in), independently of later column scales. The default scales nothing."""
        return Normalized(weight)

    def prepare(self, weights: Sequence[Tensor], statistic: Any) -> list[Normalized]:
        return [self.normalize(weight) for weight in weights]

    def quantize(self, weight: Tensor, statistic: None = None) -> QuantizedTensor:
        return self.round(self.normalize(weight))

    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]:
        return [self.quantize(weight) for weight in weights]

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
