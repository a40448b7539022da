"""Methods that first rewrite a model into an equal one that is easier to compress."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from sinq.calibration.data import Calibration
from sinq.common.timing import timed
from sinq.methods.base import Method
from sinq.methods.plan import require_usable_weights
from sinq.methods.report import CompressionReport
from sinq.methods.wrapper import MethodWrapper, let_refuse
from sinq.model.context import Context


class Rewriting(MethodWrapper):
    """A method that rewrites a model into an equal one, easier to compress, which `inner` then compresses.

    Subclasses are dataclasses with a field `inner`. The equal model has new parameters, beside the dense
    model's, until `inner` replaces them. The report's errors and imbalances refer to the rewritten matrices.
    The time of rewriting is added to the time of quantizing.
    """

    @abstractmethod
    def rewrite(self, model: nn.Module, calibration: Calibration | None, context: Context) -> None:
        """Replace parameters of `model` without changing its function."""

    @property
    def compressor(self) -> Method:
        """The method that compresses the rewritten model: `inner`, or one around it."""
        return self.inner

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        device = context.device_for(model)
        _require_usable(model)
        let_refuse(self.compressor, model, calibration, context)
        self.check_running(model, calibration)
        with torch.no_grad(), timed(device) as clock:
            self.rewrite(model, calibration, context)
        report = self.compressor.compress(model, calibration, context)
        name, seconds = type(self).__name__, report.seconds_quantize + clock.seconds
        return replace(report, seconds_quantize=seconds, method=f"{name}({report.method})")


def _require_usable(model: nn.Module) -> None:
    """Raise `ValueError` for weights that cannot be computed with: rewriting would spread them to others.

    The same for those that are computed from other parameters, which cannot be replaced.
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(f"{name} is parametrized, and only weights that are parameters can be rewritten")
    require_usable_weights(model)
