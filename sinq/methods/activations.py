"""Rounding of activations after a method has compressed the weights: W8A8, W4A8, W4A4.

Any method of weights may be inside. It sees dense activations when it is calibrated, as GPTQ does in QuaRot
(arXiv 2404.00456). Then the inputs of all layers that it compressed are rounded, each in the space that the
codes see (`model/activations.py`). A method that trains knows of it from its context, and trains with rounded
inputs (OmniQuant).

Fused experts are compressed as one parameter, and then taken apart into layers (`model/expert_layers.py`), so
that their inputs can be rounded. A method inside that trains does so with their inputs dense (`Tuned`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from sinq.calibration.data import Calibration
from sinq.common.errors import PASS_CALIBRATION, NotApplicable
from sinq.common.timing import Clock, timed
from sinq.formats.activations import ActivationFormat
from sinq.formats.grid import Grid
from sinq.kernels.integer import Products
from sinq.methods.base import Method
from sinq.methods.coded_inputs import CodedInputs
from sinq.methods.report import CompressionReport
from sinq.methods.searched_scales import search_scales
from sinq.methods.wrapper import MethodWrapper, require_once
from sinq.model.activations import ActivationQuantizer
from sinq.model.blocks import find_blocks, run_model
from sinq.model.context import Context
from sinq.model.edits import edit
from sinq.model.expert_layers import SeparateExperts, computes_by_configuration
from sinq.model.experts import CompressedExperts
from sinq.model.linear import CompressedLinear
from sinq.model.rounded_inputs import RoundInputs, static_quantizers, watching_extremes
from sinq.model.targets import Target, select
from sinq.model.walk import walk


@dataclass(frozen=True)
class RoundedFormat:
    """Label of a format of weights with one of inputs."""

    weights: Any
    inputs: Any

    @property
    def label(self) -> str:
        """ "W4A8 g64" where the weights are on a grid, else "2x8 g8 A8"."""
        if not isinstance(self.weights, Grid):
            return f"{self.weights.label} {self.inputs.label}"
        return f"W{self.weights.bits}{self.inputs.label}, weights g{self.weights.group_size}"


@dataclass(frozen=True)
class Activations(MethodWrapper):
    """Weights compressed by `inner`, and inputs of the compressed layers rounded.

    Raises:
        NotApplicable: `inner` compresses no layers, or inputs of 16 bits are not rounded.
    """

    name: ClassVar[str] = "activations"
    rounds_inputs: ClassVar[bool] = True

    inner: Method
    inputs: ActivationFormat = field(default_factory=ActivationFormat)
    products: Products = Products.simulated
    """Multiply in floats, or codes by codes where a kernel can."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_once(self)
        if not self.inputs.rounds:
            raise NotApplicable(
                f"activation.bits={self.inputs.bits} rounds nothing; use {type(self.inner).__name__} alone"
            )
        if not self.inner.compresses_layers:
            raise NotApplicable(
                f"activation {self.inputs.label} is not possible with {type(self.inner).__name__}: inputs of"
                " compressed layers are rounded, and it compresses none; use RTN with 8 bits for nearly dense"
                " weights"
            )

    @property
    def format(self) -> RoundedFormat | None:
        """Label of both formats; None where the weights have no one format."""
        weights = super().format
        return None if weights is None else RoundedFormat(weights, self.inputs)

    @property
    def label(self) -> str:
        weights = type(self.inner).__name__
        return f"{weights} {self.inputs.label}" if self.format is None else f"{weights} {self.format.label}"

    @property
    def needs_calibration(self) -> bool:
        return super().needs_calibration or self.inputs.static

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        self._require_fit(model, calibration, context)
        self.check_running(model, calibration)
        planned = CodedInputs(self.inputs)
        report = self.inner.compress(model, calibration, replace(context, inputs=planned))
        for name in [name for name, part in model.named_modules() if isinstance(part, CompressedExperts)]:
            edit(model, SeparateExperts(name))
        for name in compressed_layers(model):
            edit(model, RoundInputs(name, self.inputs.as_json(), self.products.name))
        clock, waiting = Clock(), {}
        for name, quantizer in static_quantizers(model).items():
            layer = name.removesuffix(".inputs")
            if layer in planned.kept:
                quantizer.take(planned.kept[layer])
            else:
                waiting[name] = quantizer
        if waiting and calibration is not None:
            settle(model, waiting, calibration, context, clock)
            if self.inputs.search_windows:
                tokens = calibration.tokens[: self.inputs.search_windows]
                search_scales(model, list(waiting.values()), tokens, context, clock)
        return replace(
            report, seconds_statistics=report.seconds_statistics + clock.seconds, method=self.label
        )

    def _require_fit(self, model: nn.Module, calibration: Calibration | None, context: Context) -> None:
        """Raise `NotApplicable` for what could only be found out after the weights are compressed."""
        if self.inputs.static and calibration is None:
            raise NotApplicable(f"activation {self.inputs.label} needs calibration text; {PASS_CALIBRATION}")
        for target in select(model, context.layers).targets:
            if target.parameter is not None and not computes_by_configuration(target.module):
                raise _inputs_hidden(target)
            size = self.inputs.group_size
            if size and target.shape[1] % size:
                raise NotApplicable(
                    f"activation.group_size={size} does not divide the {target.shape[1]} inputs of"
                    f" {target.name}"
                )


def require_inputs_shown(model: nn.Module, context: Context) -> Sequence[Target]:
    """Return the layers to compress; raise `NotApplicable` if one is fused, whose inputs do not show."""
    targets = select(model, context.layers).targets
    for target in targets:
        if target.parameter is not None:
            raise _inputs_hidden(target)
    return targets


def _inputs_hidden(target: Target) -> NotApplicable:
    return NotApplicable(
        f"the inputs of {target.name} cannot be rounded: code of the model multiplies by fused"
        " experts; add them to layers.exclude"
    )


def compressed_layers(model: nn.Module) -> list[str]:
    """Return the names of a model's compressed linear layers, each layer once."""
    return [name for name, module in model.named_modules() if isinstance(module, CompressedLinear)]


@torch.no_grad()
def settle(
    model: nn.Module,
    static: Mapping[str, ActivationQuantizer],
    calibration: Calibration,
    context: Context,
    clock: Clock,
) -> None:
    """Set the static scales of a model's activation quantizers from text, one block on the device at a time.

    Args:
        clock: the time of running the model is added to it.
    """
    inside = {module for block in find_blocks(model) for module in block.modules()}
    with watching_extremes(static):
        for block in walk(model, calibration.tokens, context, clock=clock):
            block.advance()  # also the last, whose outputs no block needs
        if any(quantizer not in inside for quantizer in static.values()):
            with timed(next(model.parameters()).device, clock):
                for window in calibration.tokens:
                    run_model(model, window)
