"""Round to nearest: the baseline every quantizer is measured against. One scale and zero per group, from its extremes."""

from dataclasses import dataclass

from torch import Tensor

from sinq import Grid, LayerMethod, QuantizedTensor


@dataclass(frozen=True)
class RTN(LayerMethod):
    """Round to nearest on a grid; with `grid.levels=nf4` and `grid.symmetric=true`, NF4 (QLoRA, arXiv 2305.14314)."""

    grid: Grid = Grid()

    def quantize(self, weight: Tensor, statistic: None = None) -> QuantizedTensor:
        return QuantizedTensor.round(weight, self.grid)
