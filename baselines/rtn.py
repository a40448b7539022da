"""Round to nearest: the baseline of every quantizer. Each group has one scale and zero, from its extremes."""

from dataclasses import dataclass
from typing import ClassVar

from sinq import Grid, Groups, Normalized, ScalarMethod


@dataclass(frozen=True)
class RTN(ScalarMethod):
    """Round to nearest on a grid.

    With `grid.symmetric=true`, `grid.levels=nf4` is NF4 (QLoRA, arXiv 2305.14314) and `grid.levels=fp4` is
    FP4, as in bitsandbytes.
    """

    name: ClassVar[str] = "rtn"

    grid: Grid = Grid()

    def only_rounds(self, normalized: Normalized) -> bool:
        return True

    def choose(self, normalized: Normalized) -> Groups:
        return normalized.rounded(self.grid)
