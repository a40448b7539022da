"""Latency: prefill and decode timed separately, dense and compressed model alternately.

Each round times the dense model and then the compressed one, so that a drift of the machine's speed affects
both. The result is the ratio of medians, compressed over dense, in tokens per second; every sample is kept in
the row. The first round warms up and is not counted.

Not covered yet: CUDA graphs and a compiled baseline. On a GPU both models run eagerly, and the row says so.
"""

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, ClassVar

from experiments.data.text import windows
from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from experiments.evaluation.generation import decode, phase_seconds, prefill
from sinq.common.options import check, whole
from sinq.model.experts import choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Latency(Evaluation):
    """Tokens per second of prefill and decode, batch 1, greedy."""

    name: ClassVar[str] = "latency"

    prompt_tokens: int = 128
    decode_tokens: int = 8
    rounds: int = 3
    """Number of counted rounds."""

    def __post_init__(self) -> None:
        check(self, "evaluation.latency", prompt_tokens=whole(1), decode_tokens=whole(1), rounds=whole(1))

    def check(self, context: EvaluationContext) -> None:
        if self.prompt_tokens + self.decode_tokens > context.loaded.context:
            raise ValueError(
                f"evaluation.latency: prompt_tokens={self.prompt_tokens} and decode_tokens="
                f"{self.decode_tokens} do not fit the model's context of {context.loaded.context}"
            )
        prompt = windows(context.tokens, self.prompt_tokens, 1)[:, :TRIAL_TOKENS].to(context.device)
        with tried(self.name, context):
            decode(context.loaded.model, prefill(context.loaded.model, prompt), 1)

    def measure(self, context: EvaluationContext) -> Measurement:
        prompt = windows(context.tokens, self.prompt_tokens, 1).to(context.device)
        models = {"dense": context.loaded.model}
        if not context.is_dense:
            models["compressed"] = context.model
        samples: dict[str, dict[str, list[float]]] = {
            phase: {name: [] for name in models} for phase in ("prefill", "decode")
        }
        for round_number in context.progress(range(self.rounds + 1), "latency", self.rounds + 1):
            for name, model in models.items():
                prefill, decode = phase_seconds(model, prompt, self.decode_tokens, context.device)
                if round_number > 0:
                    samples["prefill"][name].append(prefill)
                    samples["decode"][name].append(decode)
        phases = {
            phase: _summary(samples[phase], tokens)
            for phase, tokens in (("prefill", self.prompt_tokens), ("decode", self.decode_tokens))
        }
        return Measurement(
            phases | {"kernel": kernel(context.model), "timer": "wall clock, eager"}, {"seconds": samples}
        )


def _summary(samples: dict[str, list[float]], tokens: int) -> dict[str, float]:
    speed = {name: tokens / median(times) for name, times in samples.items()}
    summary = {"tokens": float(tokens), "dense_tokens_per_second": speed["dense"]}
    if "compressed" in speed:
        summary |= {"tokens_per_second": speed["compressed"], "ratio": speed["compressed"] / speed["dense"]}
    return summary


def kernel(model: "PreTrainedModel") -> str:
    """Return the names of the compressed layers' kernels, joined by +; "torch" where there are none."""
    return "+".join(sorted({choice.kernel for choice in choices(model)})) or "torch"
