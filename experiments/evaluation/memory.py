"""Peak memory of inference: what one forward pass over a prompt adds, on top of the model's own tensors.

(The peak of quantization is measured by the pipeline while it happens.) The dense model may be in memory too, so the figure is put
together from the model's bytes as they are in memory and the measured increase.
"""

from dataclasses import dataclass

import torch

from experiments.evaluation.base import Evaluation, Measurement, Subject
from experiments.meters import peak_memory
from experiments.text import windows
from sinq import stored_tensors


@dataclass(frozen=True)
class Memory(Evaluation):
    """Peak memory of a prefill."""

    prompt_tokens: int = 512
    """Length of the prompt; the model's context where that is smaller."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"evaluation.memory.prompt_tokens={self.prompt_tokens} is not possible; it must be ≥ 1")

    def check(self, subject: Subject) -> None:
        windows(subject.tokens, min(self.prompt_tokens, subject.loaded.context), 1)

    def measure(self, subject: Subject) -> Measurement:
        prompt = windows(subject.tokens, min(self.prompt_tokens, subject.loaded.context), 1).to(subject.device)
        with torch.inference_mode(), peak_memory(subject.device) as peak:
            subject.model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        weights = sum(tensor.nbytes for tensor in stored_tensors(subject.model).values())
        metrics = {
            "inference_peak_bytes": weights + peak.increase_bytes,
            "inference_increase_bytes": peak.increase_bytes,
            "weights_bytes": weights,
            "prompt_tokens": prompt.shape[1],
            "source": peak.source,
        }
        return Measurement(metrics)
