"""LoRAPrune (arXiv 2305.18403): heads and neurons are removed while adapters are trained, by their gradients.

All matrices of all blocks get adapters (LoRA). In each step, after the gradients are clipped and before they
are used, every group of heads and every neuron is scored by what the adapters' gradients say of it
(`importance.py`); no gradient of a frozen weight is ever computed. Masks take out the lowest, more and more
of them (`schedule.py`, `pruner.py`). At the end adapters are merged and matrices sliced, so that the result
is a smaller model of plain linear layers.

    method=loraprune                                the settings of the released code: days on a CPU
    method=loraprune_cpu                            the same on few windows: minutes
    method=loraprune_cpu method.sparsity.ratio=0    adapters with the same budget, nothing removed
    method=loraprune_cpu method.criterion=magnitude     the same budget, by magnitude
    method=loraprune_cpu method.sparsity.course=at_once     scored first, then removed in one step
    method=loraprune_cpu method@method.base=sinq bits=8     trained on a base in 8 bits (`quantized_base.py`)

The ratio is that of groups in prunable blocks. The first tenth of the blocks and the last one are not, so
fewer parameters go; the row has the share of parameters that is left.

Choices that paper and code leave open, or that differ: with grouped queries a kv head goes with all its query
heads (the code has no groups); the schedule of the learning rate is the paper's cosine; the moving average is
never skipped, because gradients that are not finite stop the training; products are in bfloat16 where the
device has it, and in float32 elsewhere (the code: float16); the windows of calibration are the text, without
instructions; a quantized base is compressed by any method of ours for single matrices (the paper: 8 bits of
another library), and merged as it was trained on.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import nn

from baselines.loraprune.importance import Criterion, Power
from baselines.loraprune.pruner import Groups, Pruner, groups_of
from baselines.loraprune.quantized_base import bits_per_weight, quantized_base
from baselines.loraprune.schedule import Sparsity
from sinq import Calibration, Context, Decision, LayerMethod, Method, NotApplicable
from sinq.calibration.gradients import next_token_loss
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import check, number, whole
from sinq.common.timing import Clock
from sinq.methods.slicing import Removed, Slicing
from sinq.model.recomputing import recomputing
from sinq.model.slicing import kept_groups, slice_block
from sinq.model.units import Units
from sinq.training.batches import Windows
from sinq.training.log import TrainingLog
from sinq.training.lora import LoRA, LoRALinear, adapted, merge, trained
from sinq.training.trainer import Trainer, Training

PUBLISHED = Training(steps=300, batch=128, learning_rate=1e-4)
"""Two epochs of 20 thousand windows."""


@dataclass(frozen=True)
class LoRAPrune(Slicing):
    """Heads and neurons removed while adapters are trained, then `then`.

    Raises:
        NotApplicable: the units of the model are not known, or there is no text.
        ValueError: there are fewer windows of text than a batch has, or the training stops at a number that
            is not finite.
    """

    name: ClassVar[str] = "loraprune"

    then: Method
    sparsity: Sparsity = field(default_factory=Sparsity)
    criterion: Criterion = Criterion.lora
    power: Power = Power.absolute
    eta: float = 1.0
    """Step size η in the estimate of the gradient."""
    decay: float = 0.9
    """Weight of the previous steps in the moving average of scores."""
    keep_first: float = 0.1
    """Share of the blocks, from the first on and rounded down, that lose nothing."""
    keep_last: int = 1
    """Number of the last blocks that lose nothing."""
    chunk: int = 1
    lora: LoRA = field(default_factory=LoRA)
    training: Training = PUBLISHED
    base: LayerMethod | None = None
    """Method that compresses the frozen weights for the training; None trains on the weights as they are."""

    def __post_init__(self) -> None:
        check(
            self,
            "method",
            eta=number(least=0),
            decay=number(least=0, below=1),
            keep_first=number(least=0, below=1),
            keep_last=whole(0),
            chunk=whole(1),
        )
        if self.base is not None and self.criterion is Criterion.grad:
            raise NotApplicable(
                f"method.criterion=grad is not possible with method.base={self.base.name}, whose weights have"
                " no gradients; use method.criterion=lora or magnitude, or no base"
            )

    @property
    def label(self) -> str:
        return super().label + (f", trained on {self.base.label}" if self.base else "")

    @property
    def needs_calibration(self) -> bool:
        return True

    def require_possible(self, units: Sequence[Units], calibration: Calibration | None) -> None:
        if calibration is None:
            raise NotApplicable(f"LoRAPrune trains on text; {PASS_CALIBRATION}")
        self._batches(calibration)
        if self.sparsity.ratio and not self._prunable(units):
            raise NotApplicable(
                f"method.keep_first={self.keep_first} and method.keep_last={self.keep_last} leave none of the"
                f" {len(units)} blocks to prune"
            )

    def remove(
        self,
        model: nn.Module,
        units: Sequence[Units],
        calibration: Calibration | None,
        context: Context,
        clock: Clock,
    ) -> Removed:
        assert calibration is not None  # require_possible
        before, prunable = _parameters(units), self._prunable(units)
        groups = {each.name: groups_of(each, self.chunk) for each in prunable}
        layers = [f"{each.name}.{name}" for each in units for name in each.matrices]
        learner, facts = self._learner(model, layers, calibration, context)
        with adapted(learner, layers, self.lora, self.training.seed) as adapters:
            pruner = self._pruner([each for both in groups.values() for each in both], adapters)
            log = self._train(learner, adapters, pruner, calibration, context)
        merge(model, adapters)
        for each in prunable:
            heads, neurons = groups[each.name]
            slice_block(model, each, kept_groups(each, pruner.kept(heads), pruner.kept(neurons)))
        return Removed((*self._decisions(units, before, pruner), *facts), log)

    def _learner(
        self, model: nn.Module, layers: Sequence[str], calibration: Calibration, context: Context
    ) -> tuple[nn.Module, tuple[Decision, ...]]:
        """Return the model that gets adapters, and facts about its base."""
        if self.base is None:
            return model, ()
        clone, report = quantized_base(model, layers, self.base, calibration, context)
        bits = round(bits_per_weight(report), 6)
        return clone, (Decision("base_bits_per_weight", bits, chosen=True),)

    def _prunable(self, units: Sequence[Units]) -> Sequence[Units]:
        return units[int(self.keep_first * len(units)) : max(0, len(units) - self.keep_last)]

    def _pruner(self, groups: Sequence[Groups], adapters: Mapping[str, LoRALinear]) -> Pruner:
        steps = self.training.steps
        if self.criterion is Criterion.grad:
            for name in {span.layer for each in groups for span in each.spans}:
                adapters[name].differentiate_base()
        return Pruner(
            groups, adapters, self.sparsity, steps, self.criterion, self.power, self.eta, self.decay
        )

    def _train(
        self,
        model: nn.Module,
        adapters: Mapping[str, LoRALinear],
        pruner: Pruner,
        calibration: Calibration,
        context: Context,
    ) -> TrainingLog:
        """Train the adapters on the device of the model, which must hold it whole."""
        recomputed = recomputing(model) if self.training.gradient_checkpointing else nullcontext()
        with recomputed:
            return Trainer(
                self.training,
                partial(next_token_loss, model),
                trained(adapters),
                self._batches(calibration),
                next(model.parameters()).device,
                companion=pruner,
                store=context.states,
                progress=context.progress,
            ).run()

    def _batches(self, calibration: Calibration) -> Windows:
        options = self.training
        return Windows(calibration.tokens, options.batch, options.at_once, options.seed)

    def _decisions(self, units: Sequence[Units], before: int, pruner: Pruner) -> tuple[Decision, ...]:
        """Return what is left of the blocks, and how large the term of the second power was."""
        ratio = round(_parameters(units) / before, 6)
        share = pruner.product_share.mean().item()
        scored = self.sparsity.ratio > 0 and self.criterion is Criterion.lora
        return (
            Decision("parameter_ratio", ratio, chosen=True),
            Decision("heads", sum(each.counts.heads for each in units), chosen=True),
            Decision("neurons", sum(each.counts.neurons for each in units), chosen=True),
            *([Decision("product_share", round(share, 6), chosen=True)] if scored else []),
        )


def _parameters(units: Sequence[Units]) -> int:
    """Return the number of weights in the blocks' matrices."""
    return sum(each.layer(name).weight.numel() for each in units for name in each.matrices)
