"""Round to nearest: the baseline every quantizer is measured against. One scale and zero per group, from its extremes."""

from dataclasses import dataclass

from sinq import Grid, Normalized, QuantizedTensor, ScalarMethod, assign, choose


@dataclass(frozen=True)
class RTN(ScalarMethod):
    """Round to nearest on a grid; with `grid.levels=nf4` and `grid.symmetric=true`, NF4 (QLoRA, arXiv 2305.14314)."""

    grid: Grid = Grid()

    def round(self, normalized: Normalized) -> QuantizedTensor:
        scale, zero = choose(normalized.matrix, self.grid)
        return normalized.store(assign(normalized.matrix, scale, zero, self.grid), self.grid, scale, zero)
