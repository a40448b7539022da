"""SpikeLLM (arXiv 2407.04752): inputs of layers as neurons that fire, salient channels for more steps.

    1. `inner` compresses the weights.
    2. The inputs of every compressed layer become neurons (`formats/spikes.py`, `model/spikes.py`), which
       really fire when the model runs: a membrane, T steps, soft reset.
    3. Block by block, behind blocks that fire, the channels of the largest first-order saliency are chosen
       (`sinq/algorithms/saliency.py`). They fire for T steps, the others for one.
    4. With kv=kv4_spikes around it, keys and values fire too when attention gets them.

    method=spikellm                                                        W4A4, T = 2, 10 % of the channels
    method=spikellm method.neurons.steps=4 method.share=0.05               W4A4, T = 4, 5 %
    method=spikellm bits=2 method.neurons.bits=8 method.share=0.05         W2A8

Differences from the paper and its release, all choices of this project:

- weights are rounded to nearest in groups (SpikeLLM-RTN), not trained as OmniQuant's are: another pipeline is
  another `inner`;
- saliency is taken of the weights that `inner` left and of inputs in the space of their codes, while the
  block's own neurons are silent;
- the range of salient channels is that of T(L − 1) steps, where the release's largest codes never fire; it
  also subtracts zeros over all columns, where only those of the firing channels are right; and it never runs
  its neurons unless asked;
- weights have no spikes. Mean steps of an input are 1 + share · (T − 1): they are not "n-bit activations".
"""

import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from sinq import Calibration, CompressedLinear, CompressionReport, Context, Method, NotApplicable, PartReport
from sinq.algorithms.saliency import drawn, first_order, largest
from sinq.calibration.collect import watching
from sinq.calibration.statistics import Hessian
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import SEED, check, number
from sinq.common.timing import Clock, timed
from sinq.formats.spikes import NeuronFormat
from sinq.kernels.product import core_inputs
from sinq.methods.activations import RoundedFormat, compressed_layers, require_inputs_shown
from sinq.methods.wrapper import MethodWrapper, let_refuse, require_once
from sinq.model.blocks import find_blocks, run_model
from sinq.model.edits import edit
from sinq.model.spikes import FireInputs, SpikingInputs
from sinq.model.walk import walk


class Salience(enum.Enum):
    """The way salient channels are chosen."""

    first_order = "first_order"
    """The largest saliency on calibration text."""
    random = "random"
    """By lot, as a control."""


Spiking = tuple[CompressedLinear, SpikingInputs]


@dataclass(frozen=True)
class Firing:
    """Label of neurons with the share of salient channels."""

    neurons: NeuronFormat
    share: float
    salience: Salience

    @property
    def label(self) -> str:
        """Neurons and share, and the way to choose if it is not the paper's: "A4 T2 10%"."""
        by_lot = " by lot" if self.salience is Salience.random else ""
        return f"{self.neurons.label} {100 * self.share:.4g}%{by_lot}"


@dataclass(frozen=True)
class SpikeLLM(MethodWrapper):
    """Weights compressed by `inner`, and neurons at the inputs of the compressed layers.

    Raises:
        ValueError: an option is out of its range.
        NotApplicable: `inner` compresses no layers, or rounds inputs itself.
    """

    name: ClassVar[str] = "spikellm"
    rounds_inputs: ClassVar[bool] = True

    inner: Method
    neurons: NeuronFormat = field(default_factory=NeuronFormat)
    share: float = 0.1
    """Share of each layer's input channels that are salient."""
    salience: Salience = Salience.first_order
    seed: int = 0
    """Seed of `salience=random`."""

    def __post_init__(self) -> None:
        check(self, "method", share=number(least=0, most=1), seed=SEED)
        require_once(self)
        if not self.inner.changes_model:
            raise NotApplicable(
                f"SpikeLLM is not possible with {type(self.inner).__name__}: inputs of compressed layers fire"
                ", and it compresses none; use RTN with 8 bits for nearly dense weights"
            )

    @property
    def format(self) -> RoundedFormat | None:
        """Label of the weights' format and the neurons'; None where the weights have no one format."""
        weights = super().format
        return (
            None
            if weights is None
            else RoundedFormat(weights, Firing(self.neurons, self.share, self.salience))
        )

    @property
    def label(self) -> str:
        return f"SpikeLLM({self.inner.label}, {Firing(self.neurons, self.share, self.salience).label})"

    @property
    def chooses(self) -> bool:
        """True if some channels fire for more steps than others."""
        return self.share > 0 and self.neurons.steps > 1

    @property
    def needs_calibration(self) -> bool:
        return super().needs_calibration or (self.chooses and self.salience is Salience.first_order)

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        if self.needs_calibration and calibration is None:
            raise NotApplicable(
                f"SpikeLLM needs calibration text to find salient channels; {PASS_CALIBRATION}"
            )
        let_refuse(self.inner, model, calibration, context)
        require_inputs_shown(model, context)
        self.check_running(model, calibration)
        report, clock = self.inner.compress(model, calibration, context), Clock()
        for name in compressed_layers(model):
            edit(model, FireInputs(name, asdict(self.neurons)))
        if self.chooses and self.salience is Salience.random:
            self._draw(model)
        elif self.chooses and calibration is not None:
            self._find(model, calibration, context, clock)
        neurons = {name: part for name, part in model.named_modules() if isinstance(part, SpikingInputs)}
        return replace(
            report,
            parts=tuple(with_mask(part, neurons.get(f"{part.name}.inputs")) for part in report.parts),
            seconds_statistics=report.seconds_statistics + clock.seconds,
            method=self.label,
        )

    def _draw(self, model: nn.Module) -> None:
        """Draw the salient channels of each layer, by the seed and the layer's number."""
        for index, (_, inputs) in enumerate(spiking_layers(model)):
            inputs.choose(drawn(inputs.in_features, self.share, self.seed + index))

    @torch.no_grad()
    def _find(self, model: nn.Module, calibration: Calibration, context: Context, clock: Clock) -> None:
        """Choose the salient channels, block by block, then of layers outside the blocks.

        Args:
            clock: the time of running the model is added to it.
        """
        waiting = spiking_layers(model)
        blocks = walk(model, calibration.tokens, context, clock=clock)
        for block in context.progress(blocks, "finding salient channels", len(find_blocks(model))):
            members = set(block.module.modules())
            inside = [pair for pair in waiting if pair[0] in members]
            waiting = [pair for pair in waiting if pair[0] not in members]
            with self._choosing(inside, block.device):
                block.pass_inputs()
        if waiting:
            device = next(model.parameters()).device
            with timed(device, clock), self._choosing(waiting, device):
                for window in calibration.tokens:
                    run_model(model, window)

    @contextmanager
    def _choosing(self, layers: Sequence[Spiking], device: torch.device) -> Iterator[None]:
        """Keep neurons silent and watch their inputs within the context; at its end, choose channels."""
        seen = [Hessian(layer.in_features, device) for layer, _ in layers]
        modules = [layer for layer, _ in layers]
        with silent([inputs for _, inputs in layers]), watching(zip(modules, seen, strict=True)):
            yield
        for (layer, inputs), hessian in zip(layers, seen, strict=True):
            value = layer.weight.value
            to_codes = core_inputs(value, torch.eye(layer.in_features, device=device)).T
            score = first_order(value.core.dequantize(), hessian.transformed(to_codes).matrix())
            inputs.choose(largest(score, self.share))


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


def with_mask(part: PartReport, neurons: SpikingInputs | None) -> PartReport:
    """Return the report of a layer with the bytes of the mask of its channels; others as they are."""
    if neurons is None:
        return part
    return replace(part, nbytes=part.nbytes + neurons.get_buffer("salient").nbytes)
