"""Peak memory of quantization, and of inference.

Each is the bytes of the model's tensors as they are in memory (the dense ones while quantizing, its own in inference) plus the measured
increase: of the whole compression, and of one forward pass over a prompt. The dense and the compressed model may both be in
memory here, so a process's own peak would say little.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from experiments.common.meters import Peak, peak_memory
from experiments.data.text import windows
from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from sinq import stored_tensors


@dataclass(frozen=True)
class Memory(Evaluation):
    """Peak memory of compressing the model, and of a prefill."""

    name: ClassVar[str] = "memory"

    prompt_tokens: int = 512
    """Length of the prompt; the model's context where that is smaller."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(
                f"evaluation.memory.prompt_tokens={self.prompt_tokens} is not possible; it must be ≥ 1"
            )

    def check(self, subject: EvaluationContext) -> None:
        windows(subject.tokens, min(self.prompt_tokens, subject.loaded.context), 1)

    def measure(self, subject: EvaluationContext) -> Measurement:
        prompt = windows(subject.tokens, min(self.prompt_tokens, subject.loaded.context), 1).to(
            subject.device
        )
        with torch.inference_mode(), peak_memory(subject.device) as peak:
            subject.model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        metrics = _with_weights("inference", subject.model, peak)
        if subject.quantize_peak is not None:
            metrics |= _with_weights("quantize", subject.loaded.model, subject.quantize_peak)
        return Measurement(metrics | {"prompt_tokens": prompt.shape[1], "source": peak.source})


def _with_weights(phase: str, model: PreTrainedModel, peak: Peak) -> dict[str, int]:
    weights = sum(tensor.nbytes for tensor in stored_tensors(model).values())
    total = weights + peak.increase_bytes
    return {
        f"{phase}_peak_bytes": total,
        f"{phase}_weights_bytes": weights,
        f"{phase}_increase_bytes": peak.increase_bytes,
    }
