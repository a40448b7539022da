"""SINQ, refined: SINQ's stored format without calibration, with other column scales and another range.

*Column scales.* SINQ equalises standard deviations. A column with a few large weights has a large deviation,
so all of its other weights are rounded coarsely. Here a column's scale is its mean |w|, which a few large
weights hardly move (rows are first divided by their root mean square, so that no row outweighs another). This
takes two passes, in closed form, instead of sixteen.

*Range at few bits.* A narrower range makes the typical error smaller. But the least-squares fit to it does
harm: its error points along −W (large weights are cut, and the whole group shrinks towards its mean), so it
adds up over a layer's inputs and over layers, where rounding errors cancel. So the range is narrowed, and
then, given codes q, scale and zero are solved for such that the error of these codes has no part along the
group's weights, nor along a constant:

    Σ (ŵ − w) = 0   and   Σ (ŵ − w)·w = 0     ⟺     scale = Σ(w − w̄)² / Σ(w − w̄)(q − q̄),   zero = q̄ − w̄/scale

(the scale that Vargaftik et al. 2022, EDEN, call unbiased). Solving alternates with new codes.

*What is stored is not without bias.* After the last codes only the zero is solved for, so the error of the
stored matrix does have a part along W: it is smaller than W, in ⟨Ŵ, W⟩/⟨W, W⟩, by 2.3–2.6 % at 2 bits,
0.5–0.7 % at 3 and 0.1–0.2 % at 4 (two matrices of SmolLM2). SINQ's is by 0.6–1.6 % at 2 bits, and by less
than 0.1 % at 3 and 4.

*Weights of columns in the sums.* In these sums and means a column has weight t^−2 (`influence`). It would be
right if columns of small weights had large inputs in proportion; on SmolLM2 that holds on the whole for q, v,
o and down, but not for k and gate. SINQ's paper does not claim it. The exponent is an empirical choice, made
on that one model.

The defaults were chosen on one model, SmolLM2-135M. The mathematics is in `algorithms/solved_scales.py`.
Not covered: symmetric grids and 8-bit zeros, which have no fraction to solve for.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sinq.algorithms.solved_scales import Solved
from sinq.common.errors import NotApplicable
from sinq.common.options import check, number, whole
from sinq.formats.grid import Grid
from sinq.kernels import column_magnitudes
from sinq.methods.scalar import Groups, Normalized
from sinq.methods.shared_columns import SharesColumns

EXPONENTS = (0.1, 8.0)
"""Smallest and largest exponent of a magnitude, which may be 2^10 from 1: float32 ends at 2^128."""


@dataclass(frozen=True)
class SINQRefined(SharesColumns):
    """SINQ's format with column scales from mean magnitudes and group scales solved for.

    Raises:
        NotApplicable: the grid has no fractional zero-points.
        ValueError: an option is out of range.
    """

    name: ClassVar[str] = "sinq_refined"

    grid: Grid = Grid()
    norm: float = 1.0
    """Exponent p of a column's magnitude, mean(|w|^p)^(1/p)."""
    passes: int = 2
    """Alternations between rows and columns."""
    steps: int = 2
    """Alternations between codes and (scale, zero)."""
    influence: float = 2.0
    """Exponent in the sums: a normalized weight counts col_scale^−influence; 0: all count the same."""
    range_share: float | None = None
    """Share of the range between a group's extremes that rounding starts with.

    null: 1 − 2.5·2^(−1.5·bits) (0.69 at 2 bits, 0.96 at 4).
    """
    shared_columns: bool = False
    """Find one t for matrices with the same inputs, and for query heads of one kv head, so that the layer
    before can take it (`shared_columns.py`)."""

    def __post_init__(self) -> None:
        check(
            self,
            norm=number(*EXPONENTS),
            passes=whole(1),
            steps=whole(0),
            influence=number(-EXPONENTS[1], EXPONENTS[1]),
            range_share=number(above=0, most=1),
        )
        if self.grid.symmetric or self.grid.auxiliary_bits == 8:
            raise NotApplicable(
                "SINQRefined solves for fractional zero-points:"
                " it needs symmetric=false and auxiliary_bits=16 or 32"
            )
        self.require_shareable()

    def columns(self, weight: Tensor, tile: tuple[int, int]) -> Tensor:
        """Return column scales of mean magnitudes of a matrix (out, in), (out / tile rows, in)."""
        return column_magnitudes(weight, tile, self.norm, self.passes)

    def normalize(self, weight: Tensor) -> Normalized:
        self.refuse_alone()
        tile = self.grid.tile((weight.shape[0], weight.shape[1]))
        return Normalized(weight, col_scale=column_magnitudes(weight, tile, self.norm, self.passes))

    def choose(self, normalized: Normalized) -> Groups:
        share = 1 - 2.5 * 2 ** (-1.5 * self.grid.bits) if self.range_share is None else self.range_share
        return normalized.solved(self.grid, Solved(self.steps, self.influence, share))
