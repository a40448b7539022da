"""Perplexity: exp of the mean negative log-likelihood of the next token; and in the same pass, the distance to the dense model.

Windows of `seqlen` tokens that do not overlap; within each, seqlen − 1 targets; no token is scored twice and none with context from
another window. NLL in float32, sums in float64. Every window's mean is kept, so that two models can be compared window by window.

With `top_k`, the dense model's run keeps what it predicted, and that of a compressed one reports `kl` (mean nats per token, a lower bound
of the exact divergence) and `flip_rate` (share of positions whose most probable token is another one). LogProbSink `divergence.py`.
"""

from dataclasses import dataclass
from math import exp
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.data.text import windows
from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from experiments.evaluation.divergence import Distance, Reference
from experiments.evaluation.logits import LogProbSink, head_is_plain, ignore, read_window


@dataclass(frozen=True)
class Perplexity(Evaluation):
    """Perplexity of the evaluation text, and divergence from the dense model on it."""

    name: ClassVar[str] = "perplexity"

    windows: int | None = None
    """How many windows, from the start of the text; null for all."""
    seqlen: int = 2048
    """Tokens of a window; the model's context where that is smaller."""
    top_k: int | None = 64
    """How many of the dense model's most probable tokens the divergence looks at, at each position; null for no divergence."""

    def __post_init__(self) -> None:
        if self.windows is not None and self.windows < 1:
            raise ValueError(
                f"evaluation.perplexity.windows={self.windows} is not possible; it must be ≥ 1, or null for all"
            )
        if self.seqlen < 2:
            raise ValueError(f"evaluation.perplexity.seqlen={self.seqlen} is not possible; it must be ≥ 2")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(
                f"evaluation.perplexity.top_k={self.top_k} is not possible; it must be ≥ 1, or null for no divergence"
            )

    def check(self, subject: EvaluationContext) -> None:
        self._windows(subject)

    def _windows(self, subject: EvaluationContext) -> Tensor:
        return windows(subject.tokens, min(self.seqlen, subject.loaded.context), self.windows)

    def measure(self, subject: EvaluationContext) -> Measurement:
        chosen = self._windows(subject)
        reference = None if self.top_k is None else Reference.of(subject, chosen, self.top_k)
        chunked = head_is_plain(subject.model, chosen[:1].to(subject.device))
        if reference is None:
            samples = {"window_nll": _read(subject, subject.model, chosen, chunked)}
        elif subject.is_dense:
            samples = {"window_nll": _keep(subject, chosen, chunked, reference)}
        else:
            if not reference.exists:
                _keep(
                    subject,
                    chosen,
                    head_is_plain(subject.loaded.model, chosen[:1].to(subject.device)),
                    reference,
                )
            samples = _compare(subject, chosen, chunked, reference)
        count, seqlen = chosen.shape
        facts = {"windows": count, "windows_available": len(subject.tokens) // seqlen, "seqlen": seqlen}
        return Measurement(
            _summary(samples, reference) | facts | {"head": "chunked" if chunked else "whole"}, samples
        )

    def against_dense(self, own: Measurement, dense: Measurement) -> dict[str, Any]:
        return {"dense": dense.metrics["value"]}


def _read(
    subject: EvaluationContext,
    model: PreTrainedModel,
    chosen: Tensor,
    chunked: bool,
    see: LogProbSink = ignore,
) -> list[float]:
    """Mean NLL of every window."""
    label = "perplexity, dense" if model is subject.loaded.model else "perplexity, compressed"
    return [
        window_nll(model, w[None].to(subject.device), chunked, see)
        for w in subject.progress(chosen, label, len(chosen))
    ]


def _keep(subject: EvaluationContext, chosen: Tensor, chunked: bool, reference: Reference) -> list[float]:
    """Mean NLL of every window under the dense model, whose predictions are kept if they are not yet."""
    if reference.exists:
        return _read(subject, subject.loaded.model, chosen, chunked)
    with reference.create() as see:
        return _read(subject, subject.loaded.model, chosen, chunked, see)


def _compare(
    subject: EvaluationContext, chosen: Tensor, chunked: bool, reference: Reference
) -> dict[str, list[float]]:
    """Mean NLL, mean KL and share of flips of every window."""
    samples: dict[str, list[float]] = {"window_nll": [], "window_kl": [], "window_flips": []}
    for number, window in enumerate(subject.progress(chosen, "perplexity, compressed", len(chosen))):
        distance = Distance(reference.window(number, subject.device))
        samples["window_nll"].append(
            window_nll(subject.model, window[None].to(subject.device), chunked, distance.add)
        )
        samples["window_kl"].append(distance.mean_kl)
        samples["window_flips"].append(distance.flip_rate)
    return samples


def _summary(samples: dict[str, list[float]], reference: Reference | None) -> dict[str, Any]:
    """Windows are of one length, so means of their means are means over tokens."""
    nll = fmean(samples["window_nll"])
    metrics: dict[str, Any] = {"value": exp(nll), "nll": nll}
    if "window_kl" in samples and reference is not None:
        metrics |= {
            "kl": fmean(samples["window_kl"]),
            "kl_top_k": reference.top_k,
            "flip_rate": fmean(samples["window_flips"]),
        }
    return metrics


@torch.inference_mode()
def window_nll(model: PreTrainedModel, ids: Tensor, chunked: bool = True, see: LogProbSink = ignore) -> float:
    """Mean NLL in nats of the tokens of one window, (1, seqlen), after its first.

    Args:
        chunked: whether the head may be applied by itself; see `head_is_plain`.
        see: is given all log-probabilities in turn, float32 (positions, vocabulary), and may overwrite them.
    """
    targets, total, start = ids[0, 1:], 0.0, 0
    for log_probabilities in read_window(model, ids, chunked):
        wanted = targets[start : start + len(log_probabilities), None]
        total -= log_probabilities.gather(1, wanted).double().sum().item()
        see(log_probabilities)
        start += len(wanted)
    return total / len(targets)
