"""Methods around any other method: what they take from it, and when it may refuse."""

from typing import Any, ClassVar

from torch import nn

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.errors import NotApplicable
from sinq.methods.base import BlockMethod, Method
from sinq.model.context import Context
from sinq.model.targets import select


class MethodWrapper(Method):
    """A method around another one of any kind, which compresses the weights.

    Subclasses are dataclasses with a field `inner`, and take format, statistic and the need of text from it.
    """

    rounds_inputs: ClassVar[bool] = False
    """True if it rounds the inputs of compressed layers, which only one method can."""

    inner: Method

    @property
    def format(self) -> Any:
        """Storage of the weights, for labels; None where they have no one format."""
        return getattr(self.inner, "format", None)

    @property
    def statistic(self) -> type[Statistic] | None:
        return self.inner.statistic

    @property
    def changes_shapes(self) -> bool:
        return self.inner.changes_shapes

    @property
    def compresses_layers(self) -> bool:
        return self.inner.compresses_layers

    @property
    def needs_calibration(self) -> bool:
        return self.inner.needs_calibration


def require_once(method: MethodWrapper) -> None:
    """Raise `NotApplicable` if a method is around another one whose work it would undo.

    Such are methods of its class, and for a method that rounds inputs all others that do.
    """
    name, within = type(method).__name__, getattr(method, "inner", None)
    while within is not None:
        if isinstance(within, type(method)):
            raise NotApplicable(f"{name} is not possible around another {name}")
        if method.rounds_inputs and getattr(within, "rounds_inputs", False):
            raise NotApplicable(
                f"{name} is not possible around {type(within).__name__}, which rounds the inputs of layers"
                " too; use activation=none, or another inner method"
            )
        within = getattr(within, "inner", None)


def let_refuse(method: Method, model: nn.Module, calibration: Calibration | None, context: Context) -> None:
    """Let a method refuse a model before another one changes it.

    Raises:
        ValueError: its layers, or the options of the method, do not fit.
    """
    if method.changes_model:
        select(model, context.layers)
    if isinstance(method, BlockMethod):
        method.plan(model, calibration, context)
    elif isinstance(method, MethodWrapper):
        let_refuse(method.inner, model, calibration, context)
