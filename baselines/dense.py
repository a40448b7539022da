"""No compression: the dense model as a method, so that it is run, recorded and tabulated like the others."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sinq import Calibration, CompressionReport, Context, Method
from sinq.calibration.data import check_calibration


@dataclass(frozen=True)
class Dense(Method):
    """Absence of compression: the model stays unchanged."""

    name: ClassVar[str] = "dense"
    changes_model: ClassVar[bool] = False

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        check_calibration(calibration)
        return CompressionReport(method="Dense")
