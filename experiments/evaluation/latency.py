"""Latency: prefill and decode timed separately, dense and compressed model alternately.

Each round times the dense model and then the compressed one, so that a drift of the machine's speed affects
both. The result is the ratio of medians, compressed over dense, in tokens per second; every sample is kept in
the row. The first round warms up and is not counted.

With `compiled`, both models are timed compiled as well (`compiled.py`), by the same rounds. On a CPU the row
has the share of each part of an eager decode step (`time_split.py`). Not covered yet: CUDA graphs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from experiments.data.text import windows
from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from experiments.evaluation.compiled import CompiledModel
from experiments.evaluation.generation import decode, phase_seconds, prefill
from experiments.evaluation.time_split import time_split
from sinq.common.options import check, whole
from sinq.model.experts import choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Seconds = dict[str, dict[str, list[float]]]
"""Phase → model → seconds of each round."""
Timed = Callable[[], tuple[float, float]]
"""Function that returns the seconds of prefill and decode."""


@dataclass(frozen=True)
class Latency(Evaluation):
    """Tokens per second of prefill and decode, batch 1, greedy."""

    name: ClassVar[str] = "latency"

    prompt_tokens: int = 128
    decode_tokens: int = 8
    rounds: int = 3
    """Number of counted rounds."""
    compiled: bool = False
    """Time both models compiled, too; compiling takes about a minute each, and its seconds are in the row."""

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
        eager = {
            name: partial(phase_seconds, model, prompt, self.decode_tokens, context.device)
            for name, model in models.items()
        }
        seconds = self._rounds(context, "latency", eager)
        metrics = self._phases(seconds) | {"kernel": kernel(context.model), "timer": "wall clock, eager"}
        if context.device.type == "cpu":
            metrics["decode_split"] = {name: self._split(each, prompt) for name, each in models.items()}
        samples = {"seconds": seconds}
        if self.compiled:
            made = {
                name: CompiledModel(model, prompt, self.decode_tokens, context.device)
                for name, model in models.items()
            }
            timed = {name: each.phase_seconds for name, each in made.items()}
            samples["compiled_seconds"] = self._rounds(context, "latency, compiled", timed)
            compiling = {name: each.compile_seconds for name, each in made.items()}
            metrics["compiled"] = self._phases(samples["compiled_seconds"]) | {"compile_seconds": compiling}
        return Measurement(metrics, samples)

    def _rounds(self, context: EvaluationContext, label: str, phases: Mapping[str, Timed]) -> Seconds:
        """Return the seconds of each phase of each model, timed in turn; the first round is not counted."""
        found: Seconds = {phase: {name: [] for name in phases} for phase in ("prefill", "decode")}
        for number in context.progress(range(self.rounds + 1), label, self.rounds + 1):
            for name, seconds in phases.items():
                first, then = seconds()
                if number > 0:
                    found["prefill"][name].append(first)
                    found["decode"][name].append(then)
        return found

    def _phases(self, seconds: Seconds) -> dict[str, Any]:
        tokens = {"prefill": self.prompt_tokens, "decode": self.decode_tokens}
        return {phase: _summary(seconds[phase], count) for phase, count in tokens.items()}

    def _split(self, model: "PreTrainedModel", prompt: Tensor) -> dict[str, float]:
        """Return the share of each part in the time of decoding."""
        step = prefill(model, prompt)
        return time_split(model, lambda: decode(model, step, self.decode_tokens))


def _summary(samples: dict[str, list[float]], tokens: int) -> dict[str, float]:
    speed = {name: tokens / median(times) for name, times in samples.items()}
    summary = {"tokens": float(tokens), "dense_tokens_per_second": speed["dense"]}
    if "compressed" in speed:
        summary |= {"tokens_per_second": speed["compressed"], "ratio": speed["compressed"] / speed["dense"]}
    return summary


def kernel(model: "PreTrainedModel") -> str:
    """Return the names of the compressed layers' kernels, joined by +; "torch" where there are none."""
    return "+".join(sorted({choice.kernel for choice in choices(model)})) or "torch"
