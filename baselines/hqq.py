"""HQQ: half-quadratic quantization (Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/).

Scales come from the extremes of each group, as in round to nearest. The zero-points then become fractions
that make the error sparse (`sinq/algorithms/half_quadratic.py`). The computation follows its package, hqq
0.2.8, with the options of its `BaseQuantizeConfig`: at 4 bits the zero-points start from whole numbers, at
all other bits from fractions. With `Grid(auxiliary_bits=32)` this gives the same matrix as the package's
outputs, bit by bit; the package otherwise has float16 scales and zeros, the default here.

The package differs for weights that are very small: a group whose range is at most 1e-4 has scale 1 there,
and no 1/scale is above 2e4. Here small weights are refined like others.
"""

from dataclasses import dataclass
from typing import ClassVar

from sinq import Grid, Groups, HalfQuadratic, Levels, Normalized, NotApplicable, ScalarMethod
from sinq.common.options import check

PACKAGE = HalfQuadratic(early_stop=True, reround=True)
WHOLE_BITS = 4
"""Bits at which the package starts from whole zero-points (`BaseQuantizeConfig`: `round_zero`)."""


@dataclass(frozen=True)
class HQQ(ScalarMethod):
    """Half-quadratic quantization: round to nearest with zero-points that make the error sparse.

    Raises:
        NotApplicable: the grid's zero-points cannot be fractions.
    """

    name: ClassVar[str] = "hqq"
    version: ClassVar[int] = 2
    """1 started from fractions at 4 bits too."""

    grid: Grid = Grid()
    refinement: HalfQuadratic = PACKAGE
    round_zero: bool | None = None
    """Start from whole zero-points. null: at 4 bits only, as the package does."""

    def __post_init__(self) -> None:
        check(self, "method")
        grid = self.grid
        if grid.symmetric or grid.auxiliary_bits == 8 or grid.levels is not Levels.uniform:
            raise NotApplicable(
                "HQQ moves zero-points by fractions: "
                "it needs uniform levels, symmetric=false and auxiliary_bits=16 or 32"
            )

    def choose(self, normalized: Normalized) -> Groups:
        whole = self.grid.bits == WHOLE_BITS if self.round_zero is None else self.round_zero
        return normalized.refined(self.grid, self.refinement, whole)
