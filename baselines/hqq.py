"""HQQ: half-quadratic quantization (Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/).

Scales come from the extremes of each group, as in round to nearest. The zero-points then become fractions
that make the error sparse (`sinq/algorithms/half_quadratic.py`). The computation follows its package. With
`Grid(auxiliary_bits=32)` this gives the same matrix as the package's outputs, bit by bit; the package
otherwise has float16 scales and zeros, the default here.
"""

from dataclasses import dataclass
from typing import ClassVar

from sinq import Grid, HalfQuadratic, Levels, Normalized, NotApplicable, QuantizedTensor, ScalarMethod
from sinq.common.options import check

PACKAGE = HalfQuadratic(early_stop=True, reround=True)


@dataclass(frozen=True)
class HQQ(ScalarMethod):
    """Half-quadratic quantization: round to nearest with zero-points that make the error sparse.

    Raises:
        NotApplicable: the grid's zero-points cannot be fractions.
    """

    name: ClassVar[str] = "hqq"

    grid: Grid = Grid()
    refinement: HalfQuadratic = PACKAGE
    round_zero: bool = False
    """Start from whole zero-points. The package does at 4 bits only."""

    def __post_init__(self) -> None:
        check(self, "method")
        grid = self.grid
        if grid.symmetric or grid.auxiliary_bits == 8 or grid.levels is not Levels.uniform:
            raise NotApplicable(
                "HQQ moves zero-points by fractions: "
                "it needs uniform levels, symmetric=false and auxiliary_bits=16 or 32"
            )

    def round(self, normalized: Normalized) -> QuantizedTensor:
        return normalized.refined(self.grid, self.refinement, self.round_zero)
