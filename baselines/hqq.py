"""HQQ: half-quadratic quantization (Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/), as its own package does it.

Scales come from the extremes of each group, as in round to nearest; the zero-points then become fractions that make the error sparse
(`sinq/algorithms/half_quadratic.py`). On the package's own outputs this gives the same matrix, bit by bit, with `Grid(auxiliary_bits=32)`; its
other scales and zeros are float16, as here by default.
"""

from dataclasses import dataclass
from typing import ClassVar

from sinq import Grid, HalfQuadratic, Levels, Normalized, NotApplicable, QuantizedTensor, ScalarMethod

PACKAGE = HalfQuadratic(early_stop=True, reround=True)


@dataclass(frozen=True)
class HQQ(ScalarMethod):
    """Half-quadratic quantization: round to nearest with zero-points that make the error sparse."""

    name: ClassVar[str] = "hqq"

    grid: Grid = Grid()
    refinement: HalfQuadratic = PACKAGE
    round_zero: bool = False
    """Start from whole zero-points. The package does at 4 bits only."""

    def __post_init__(self) -> None:
        grid = self.grid
        if grid.symmetric or grid.auxiliary_bits == 8 or grid.levels is not Levels.uniform:
            raise NotApplicable(
                "HQQ moves zero-points by fractions: it needs uniform levels, symmetric=false and auxiliary_bits=16 or 32"
            )

    def round(self, normalized: Normalized) -> QuantizedTensor:
        return normalized.refined(self.grid, self.refinement, self.round_zero)
