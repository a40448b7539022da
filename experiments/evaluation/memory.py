"""Peak memory of quantization, and of inference.

Each is the bytes of the model's tensors in memory (the dense model's while quantizing, the compressed model's
in inference) plus the measured increase: of the whole compression, and of one forward pass over a prompt. The
dense and the compressed model may both be in memory here, so the peak of the process would say little.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from experiments.common.meters import Peak, peak_memory
from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from experiments.evaluation.generation import call
from sinq import stored_tensors
from sinq.common.options import check, whole
from sinq.model.language_model import Predicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Memory(Evaluation):
    """Peak memory of compressing the model, and of a prefill."""

    name: ClassVar[str] = "memory"
    predicts: ClassVar[Predicts | None] = None

    prompt_tokens: int = 512
    """Length of the prompt in tokens; at most the model's context."""

    def __post_init__(self) -> None:
        check(self, "evaluation.memory", prompt_tokens=whole(1))

    def check(self, context: EvaluationContext) -> None:
        prompt = self._prompt(context)[:, :TRIAL_TOKENS].to(context.device)
        with tried(self.name, context), torch.inference_mode():
            call(context.loaded.model, prompt)

    def _prompt(self, context: EvaluationContext) -> Tensor:
        return context.windows("evaluation.memory", self.prompt_tokens, 1)

    def measure(self, context: EvaluationContext) -> Measurement:
        prompt = self._prompt(context).to(context.device)
        with torch.inference_mode(), peak_memory(context.device) as peak:
            call(context.model, prompt)
        metrics = _with_weights("inference", context.model, peak)
        if context.quantize_peak is not None:
            metrics |= _with_weights("quantize", context.loaded.model, context.quantize_peak)
        return Measurement(metrics | {"prompt_tokens": prompt.shape[1], "source": peak.source})


def _with_weights(phase: str, model: "PreTrainedModel", peak: Peak) -> dict[str, int]:
    weights = sum(tensor.nbytes for tensor in stored_tensors(model).values())
    total = weights + peak.increase_bytes
    return {
        f"{phase}_peak_bytes": total,
        f"{phase}_weights_bytes": weights,
        f"{phase}_increase_bytes": peak.increase_bytes,
    }
