"""A decoder block while its rounding is learned: what is trained, what it computes, and what is stored.

weights ─▶ transformation ─▶ additions ─▶ rounding with learned clipping ─▶ the block computes
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from baselines.omniquant.clipping import Clipping
from baselines.omniquant.rounding import rounding_inputs
from baselines.omniquant.transformation import Transformation
from sinq import Decision, PartReport
from sinq.methods.plan import LayerPlan, naming
from sinq.methods.report import describe
from sinq.model.conv1d import is_conv1d
from sinq.model.decoder import ParameterRef
from sinq.model.layer_inputs import LayerInputs
from sinq.model.walk import BlockView
from sinq.training.substitution import computing_with


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer of a block, and the rounding of its weight."""

    plan: LayerPlan
    clipping: Clipping

    @cached_property
    def parameter(self) -> ParameterRef:
        return ParameterRef(self.plan.target.module)

    @property
    def leaves(self) -> list[Tensor]:
        """The logits of clipping, if they are learned."""
        return [] if self.clipping.logits is None else [self.clipping.logits]

    def weight(self, changed: Mapping[ParameterRef, Tensor], device: torch.device) -> Tensor:
        """Return the weight (out, in) under changes of parameters, float32."""
        given = changed.get(self.parameter)
        return self._turned(self.parameter.read(device) if given is None else given)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the matrix (out, in) that is rounded in place of a weight: the weight itself."""
        return weight

    def rounded(self, changed: Mapping[ParameterRef, Tensor], device: torch.device) -> Tensor:
        """Return the rounded weight in the layout of its parameter, to be trained through."""
        return self._turned(self.clipping.rounded(self.matrix(self.weight(changed, device))))

    def _turned(self, tensor: Tensor) -> Tensor:
        return tensor.T if is_conv1d(self.plan.target.module) else tensor


@dataclass(frozen=True, eq=False)
class Student:
    """A block whose layers are rounded as they will be stored."""

    block: BlockView
    layers: Sequence[Layer]
    transformation: Transformation | None
    inputs: Mapping[nn.Module, LayerInputs]
    """What rounds the inputs of the layers, by module of the dense layer; empty where nothing does."""

    def changed(self) -> dict[ParameterRef, Tensor]:
        """Return the parameters under the transformation, not rounded, float32."""
        return {} if self.transformation is None else self.transformation.tensors(self.block.device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let the block compute with rounded weights and inputs within the context, in float32."""
        changed, device = self.changed(), self.block.device
        rounded = {layer.parameter: layer.rounded(changed, device) for layer in self.layers}
        with computing_with(self.block.module, changed | rounded), rounding_inputs(self.inputs):
            yield

    def run(self, window: int) -> Tensor:
        """Return the block's output (1, seqlen, hidden) on its inputs in a window, float32."""
        with self.computing():
            return self.block.run(self.block.inputs[window], window, torch.float32)

    @torch.no_grad()
    def store(self, seconds: float, decision: Decision) -> list[PartReport]:
        """Replace the block's layers by compressed ones, and write what else the transformation changed.

        Args:
            seconds: time of training, shared out by parameters.
            decision: noted for each layer.
        """
        changed, device, model = self.changed(), self.block.device, self.block.model
        for parameter in changed.keys() - {layer.parameter for layer in self.layers}:
            parameter.write(changed[parameter])
        share = seconds / max(1, sum(layer.plan.target.numel for layer in self.layers))
        reports = []
        for layer in self.layers:
            target, weight = layer.plan.target, layer.weight(changed, device)
            with naming([target.name]):
                value = layer.clipping.store(layer.matrix(weight))
            decisions = (*layer.plan.decisions, decision)
            reports.append(describe(target.name, weight, value, share * weight.numel(), decisions))
            target.replace(model, [value])
        return reports

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Round what goes into the stored layers within the context, as will be done to the whole model."""
        stored: list[Any] = []  # CompressedLinear
        try:
            for target in (layer.plan.target for layer in self.layers):
                stored.append(self.block.model.get_submodule(target.name))
                stored[-1].inputs = self.inputs.get(target.module)
            yield
        finally:
            for layer in stored:
                layer.inputs = None
