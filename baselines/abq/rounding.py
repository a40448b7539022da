"""Rounding to fewer levels than a grid has, stored as it is or repacked."""

from torch import Tensor

from baselines.omniquant.clipping import Clipping
from sinq import CompressedWeight
from sinq.formats.repacked import RepackedTensor
from sinq.formats.scalar import QuantizedTensor


class Repacking(Clipping):
    """Rounding of one matrix, of which several codes are stored in one word (`formats/repacked.py`)."""

    def store(self, weight: Tensor) -> CompressedWeight:
        value = super().store(weight)
        assert isinstance(value, QuantizedTensor)
        return RepackedTensor.of(value, self.top + 1)
