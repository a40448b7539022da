"""Methods that keep what they are given."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from sinq import Grid, LayerMethod, QuantizedTensor
from sinq.calibration.statistics import Hessian, Inputs, Statistic


@dataclass(frozen=True)
class Recorder(LayerMethod):
    """Round to nearest at 2 bits, so that compressed predecessors matter; keep the statistics in order."""

    name: ClassVar[str] = "toy_recorder"

    grid: Grid = Grid(bits=2, group_size=32)
    seen: list[Statistic] = field(default_factory=list)
    statistic = Hessian

    def quantize(self, weight: Tensor, statistic: Any) -> QuantizedTensor:
        self.seen.append(statistic)
        return QuantizedTensor.round(weight, self.grid)


class MeanRecorder(Recorder):
    statistic = Inputs
