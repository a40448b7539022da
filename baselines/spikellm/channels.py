"""Salient channels of a model's layers: chosen block by block, behind blocks whose neurons fire.

They are chosen after the weights are compressed (`finish`), or before, where the weights are trained with
inputs that fire: such a method asks for the neurons of each block (`of_block`), and its masks are then fixed,
as in the release. Either way the block's own neurons are silent.
"""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sinq import Calibration, CompressedLinear, Context
from sinq.algorithms.saliency import drawn, first_order, largest
from sinq.calibration.collect import watching
from sinq.calibration.statistics import Hessian
from sinq.common.timing import Clock, timed
from sinq.formats.spikes import NeuronFormat
from sinq.kernels.product import core_inputs
from sinq.model.blocks import find_blocks, run_model
from sinq.model.layer_inputs import LayerInputs
from sinq.model.spikes import SpikingInputs
from sinq.model.targets import Target
from sinq.model.walk import BlockView, walk


class Salience(enum.Enum):
    """The way salient channels are chosen."""

    first_order = "first_order"
    """The largest saliency on calibration text."""
    random = "random"
    """By lot, as a control."""


@dataclass(frozen=True)
class Firing:
    """Neurons, and the choice of the channels that fire for more than one step."""

    neurons: NeuronFormat
    share: float
    salience: Salience
    seed: int

    @property
    def chooses(self) -> bool:
        """True if some channels fire for more steps than others."""
        return self.share > 0 and self.neurons.steps > 1

    @property
    def measures(self) -> bool:
        """True if channels are chosen on text."""
        return self.chooses and self.salience is Salience.first_order

    @property
    def label(self) -> str:
        """Neurons and share, and the way to choose if it is not the paper's: "A4 T2 10%"."""
        by_lot = " by lot" if self.salience is Salience.random else ""
        return f"{self.neurons.label} {100 * self.share:.4g}%{by_lot}"


Spiking = tuple[CompressedLinear, SpikingInputs]


class Channels:
    """The choice of one run; the `PlannedInputs` of what compresses the weights."""

    static = False

    def __init__(self, firing: Firing) -> None:
        self.firing = firing
        self.masks: dict[str, Tensor] = {}
        """True for the salient channels of each layer for which they are chosen, (in,), by name."""

    def of_block(
        self, layers: Sequence[Target], run: Callable[[], None], device: torch.device
    ) -> dict[nn.Module, LayerInputs]:
        """Choose the channels of dense layers, for good, and return their neurons."""
        found: dict[nn.Module, LayerInputs] = {}
        with _seeing([(layer.module, layer.shape[1]) for layer in layers], device) as seen:
            if self.firing.measures:
                run()
        for layer, hessian in zip(layers, seen, strict=True):
            (matrix,) = layer.matrices().values()
            neurons = SpikingInputs(self.firing.neurons, layer.shape[1]).to(device)
            if self.firing.measures:
                self._take(layer.name, neurons, first_order(matrix.to(device), hessian.matrix()))
            elif self.firing.chooses:
                self._draw(layer.name, neurons)
            found[layer.module] = neurons
        return found

    @contextmanager
    def attached(self, block: BlockView, layers: Mapping[str, CompressedLinear]) -> Iterator[None]:
        """Let inputs of compressed layers fire within the context, with channels that are chosen for good."""
        pairs: dict[str, Spiking] = {}
        try:
            for name, layer in layers.items():
                inputs = SpikingInputs(self.firing.neurons, layer.in_features).to(block.device)
                pairs[name], layer.inputs = (layer, inputs), inputs
            if self.firing.measures:
                with self._choosing(pairs, block.device):
                    block.pass_inputs()
            elif self.firing.chooses:
                for name, (_, inputs) in pairs.items():
                    self._draw(name, inputs)
            yield
        finally:
            for layer in layers.values():
                layer.inputs = None

    def finish(
        self, model: nn.Module, calibration: Calibration | None, context: Context, clock: Clock
    ) -> None:
        """Set the channels of all neurons of a model, and choose those that are not chosen yet.

        Args:
            clock: the time of running the model is added to it.
        """
        names = {module: name for name, module in model.named_modules()}
        waiting: dict[str, Spiking] = {}
        for layer, inputs in spiking_layers(model):
            if names[layer] in self.masks:
                inputs.choose(self.masks[names[layer]])
            else:
                waiting[names[layer]] = layer, inputs
        if self.firing.measures and calibration is not None and waiting:
            self._find(model, waiting, calibration, context, clock)
        elif self.firing.chooses and not self.firing.measures:
            for name, (_, inputs) in waiting.items():
                self._draw(name, inputs)

    def _draw(self, name: str, inputs: SpikingInputs) -> None:
        """Draw the channels of a layer, by the seed and the layer's number."""
        seed = self.firing.seed + len(self.masks)
        self.masks[name] = drawn(inputs.in_features, self.firing.share, seed)
        inputs.choose(self.masks[name])

    def _take(self, name: str, inputs: SpikingInputs, score: Tensor) -> None:
        self.masks[name] = largest(score, self.firing.share)
        inputs.choose(self.masks[name])

    @torch.no_grad()
    def _find(
        self,
        model: nn.Module,
        waiting: dict[str, Spiking],
        calibration: Calibration,
        context: Context,
        clock: Clock,
    ) -> None:
        """Choose the channels of compressed layers, block by block, then of layers outside the blocks."""
        waiting = dict(waiting)
        blocks = walk(model, calibration.tokens, context, clock=clock)
        for block in context.progress(blocks, "finding salient channels", len(find_blocks(model))):
            members = set(block.module.modules())
            inside = {name: waiting.pop(name) for name in list(waiting) if waiting[name][0] in members}
            with self._choosing(inside, block.device):
                block.pass_inputs()
        if waiting:
            device = next(model.parameters()).device
            with timed(device, clock), self._choosing(waiting, device):
                for window in calibration.tokens:
                    run_model(model, window)

    @contextmanager
    def _choosing(self, layers: dict[str, Spiking], device: torch.device) -> Iterator[None]:
        """Keep neurons silent and watch their inputs within the context; at its end, choose channels."""
        sizes = [(layer, layer.in_features) for layer, _ in layers.values()]
        with silent([inputs for _, inputs in layers.values()]), _seeing(sizes, device) as seen:
            yield
        for (name, (layer, inputs)), hessian in zip(layers.items(), seen, strict=True):
            value = layer.weight.value
            to_codes = core_inputs(value, torch.eye(layer.in_features, device=device)).T
            score = first_order(value.core.dequantize(), hessian.transformed(to_codes).matrix())
            self._take(name, inputs, score)


@contextmanager
def _seeing(modules: Sequence[tuple[nn.Module, int]], device: torch.device) -> Iterator[list[Hessian]]:
    """Collect a Hessian of the inputs of each module within the context."""
    seen = [Hessian(size, device) for _, size in modules]
    with watching(zip([module for module, _ in modules], seen, strict=True)):
        yield seen


def spiking_layers(model: nn.Module) -> list[Spiking]:
    """Return the layers of a model whose inputs fire, with their neurons."""
    layers = (part for part in model.modules() if isinstance(part, CompressedLinear))
    return [(layer, layer.inputs) for layer in layers if isinstance(layer.inputs, SpikingInputs)]


@contextmanager
def silent(neurons: Sequence[SpikingInputs]) -> Iterator[None]:
    """Let inputs pass as they are within the context."""
    for each in neurons:
        each.rounds = False
    try:
        yield
    finally:
        for each in neurons:
            each.rounds = True
