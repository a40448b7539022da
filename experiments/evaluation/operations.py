"""Operations of the layers whose inputs are rounded, counted on a text while the model runs.

A layer with rounded inputs says what its product does with them (`sinq/model/layer_inputs.py`):

- `steps_per_input`: the mean number of steps in which an input is multiplied. 1 for codes, 1 + ρ(T − 1) for
  neurons of which a share ρ fires for T steps, q for the planes of q-bit codes;
- `spikes_per_input`: binary spikes that fired, or bits that are set, counted and not estimated;
- `synaptic_operations`: additions that these cause. A spike adds a weight in each row, a set bit a bit in
  each plane of each row;
- `bit_operations`: p · q products of bits for each product of numbers, whatever the bits are;
- `multiplications`: those of the dense layer, the number to compare with.

All are totals of the text, and `samples` has them by layer. Operations of different kinds do not compare:
nothing here is an energy, and nothing a time (`latency` has those). Layers whose inputs are not rounded,
attention and the output head are not counted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from sinq import CompressedLinear
from sinq.common.options import check, whole
from sinq.kernels.product import core_inputs
from sinq.model.layer_inputs import Work


@dataclass(frozen=True)
class Operations(Evaluation):
    """Spikes, steps and operations of the layers whose inputs are rounded."""

    name: ClassVar[str] = "operations"

    windows: int | None = 1
    """Number of windows, from the start of the text; null for all."""
    seqlen: int = 512
    """Tokens of a window; at most the model's context."""

    def __post_init__(self) -> None:
        check(self, "evaluation.operations", windows=whole(1), seqlen=whole(1))

    def check(self, context: EvaluationContext) -> None:
        first = self._windows(context)[:1, :TRIAL_TOKENS].to(context.device)
        with tried(self.name, context), torch.inference_mode():
            context.loaded.model.base_model(input_ids=first, use_cache=False)

    def _windows(self, context: EvaluationContext) -> Tensor:
        return context.windows("evaluation.operations", self.seqlen, self.windows)

    @torch.inference_mode()
    def measure(self, context: EvaluationContext) -> Measurement:
        """Return totals and means, and the work of each layer; nothing where no inputs are rounded."""
        chosen, found = self._windows(context), dict[str, Work]()
        with counting(context.model, found):
            for window in context.progress(chosen, "operations", len(chosen)):
                context.model.base_model(input_ids=window[None].to(context.device), use_cache=False)
        if not found:
            return Measurement({})
        count, seqlen = chosen.shape
        facts = {"layers": len(found), "tokens": chosen.numel(), "windows": count, "seqlen": seqlen}
        samples = {name: asdict(work) for name, work in found.items()}
        return Measurement(_summary(list(found.values())) | facts, {"work": samples})


def _summary(found: list[Work]) -> dict[str, Any]:
    total = sum(found[1:], start=found[0])
    metrics = asdict(total) | {
        "steps_per_input": total.steps / total.inputs,
        "spikes_per_input": total.spikes / total.inputs,
    }
    return {name: value for name, value in metrics.items() if name not in ("steps", "spikes", "inputs")}


@contextmanager
def counting(model: nn.Module, found: dict[str, Work]) -> Iterator[None]:
    """Add up the work of each layer with rounded inputs, by name, within the context."""
    layers = {name: part for name, part in model.named_modules() if isinstance(part, CompressedLinear)}
    handles = [
        layer.register_forward_pre_hook(_counter(name, found))
        for name, layer in layers.items()
        if layer.inputs is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counter(name: str, found: dict[str, Work]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def count(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, CompressedLinear)
        assert layer.inputs is not None
        value = layer.weight.value
        work = layer.inputs.work(value.core, core_inputs(value, args[0]))
        found[name] = found[name] + work if name in found else work

    return count
