"""Methods that first rewrite a model into an equal one that is easier to compress."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.timing import timed
from sinq.formats.base import Format
from sinq.methods.base import BlockMethod, Method
from sinq.methods.plan import require_usable_weights
from sinq.methods.report import CompressionReport
from sinq.model.context import Context
from sinq.model.targets import select


class Rewriting(Method):
    """A method that rewrites a model into an equal one, easier to compress, which `inner` then compresses.

    Subclasses are dataclasses with a field `inner`. The equal model has new parameters, beside the dense
    model's, until `inner` replaces them. The report's errors and imbalances refer to the rewritten matrices.
    The time of rewriting is added to the time of quantizing.
    """

    inner: Method

    @abstractmethod
    def rewrite(self, model: nn.Module, calibration: Calibration | None, context: Context) -> None:
        """Replace parameters of `model` without changing its function."""

    @property
    def compressor(self) -> Method:
        """The method that compresses the rewritten model: `inner`, or one around it."""
        return self.inner

    @property
    def format(self) -> Format | None:
        """Storage of the matrices: the inner method's; None where that has no one format."""
        return getattr(self.inner, "format", None)

    @property
    def statistic(self) -> type[Statistic] | None:
        return self.inner.statistic

    @property
    def needs_calibration(self) -> bool:
        return self.inner.needs_calibration

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        select(model, context.layers)  # refuses a model before it is rewritten
        device = context.device_for(model)
        _require_usable(model)
        if isinstance(self.compressor, BlockMethod):
            self.compressor.plan(model, calibration, context)  # refuses layers before they are rewritten
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
