"""No compression: the dense model, as a method like the others, so that it is run, recorded and tabulated like them."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sinq import CompressionReport, Method


@dataclass(frozen=True)
class Dense(Method):
    """Leaves the model as it is."""

    name: ClassVar[str] = "dense"
    changes_model: ClassVar[bool] = False

    def compress(self, model: nn.Module, calibration: Any = None, **options: Any) -> CompressionReport:
        return CompressionReport()
