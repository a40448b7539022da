"""Perplexity: exp of the mean negative log-likelihood (NLL) of the next token; distance to the dense model.

Windows of `seqlen` tokens do not overlap; each has seqlen − 1 targets; no token is scored twice, and none
with context from another window. NLL is in float32, sums are in float64. Every window's mean is kept, so that
two models can be compared window by window.

With `top_k`, the dense model's run keeps its predictions. In the same pass, the run of a compressed model
reports `kl` (mean nats per token, a lower bound of the exact divergence), `flip_rate` (share of positions
whose most probable token changed) and `tie_rate` (share where it is not the only one); see `divergence.py`.
"""

import logging
import sys
from dataclasses import dataclass
from math import exp, inf
from math import log as natural_logarithm
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from experiments.data.bos import Bos, advice
from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from experiments.evaluation.divergence import Distance, Reference
from experiments.evaluation.logits import LogProbSink, head_is_plain, ignore, read_window
from sinq.common.options import check, whole

log = logging.getLogger(__name__)
LARGEST_NLL = natural_logarithm(sys.float_info.max)
"""Largest NLL whose perplexity is a number, 709 nats."""

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Perplexity(Evaluation):
    """Perplexity of the evaluation text, and divergence from the dense model on it."""

    name: ClassVar[str] = "perplexity"

    windows: int | None = None
    """Number of windows, from the start of the text; null for all."""
    seqlen: int = 2048
    """Tokens of a window; at most the model's context."""
    top_k: int | None = 64
    """Number of the dense model's most probable tokens in the divergence, at each position; null for none."""
    bos: Bos = Bos.first
    """The windows that begin with the token of beginning: `first`, as the tokenizer does, or `each`."""

    def __post_init__(self) -> None:
        check(self, "evaluation.perplexity", windows=whole(1), seqlen=whole(2), top_k=whole(1))

    def check(self, context: EvaluationContext) -> None:
        first = self._windows(context)[:1].to(context.device)
        with tried(self.name, context):
            head_is_plain(context.loaded.model, first)
            window_nll(context.loaded.model, first[:, :TRIAL_TOKENS], chunked=False)
        if note := self._note(context):
            log.info("evaluation.perplexity: %s", note)

    def _note(self, context: EvaluationContext) -> str | None:
        return advice(context.loaded.model.config.model_type, self.bos, "evaluation.perplexity.bos")

    def _windows(self, context: EvaluationContext) -> Tensor:
        return context.windows("evaluation.perplexity", self.seqlen, self.windows, self.bos)

    def measure(self, context: EvaluationContext) -> Measurement:
        chosen = self._windows(context)
        reference = None if self.top_k is None else Reference.of(context, chosen, self.top_k)
        chunked = head_is_plain(context.model, chosen[:1].to(context.device))
        if reference is None:
            samples = {"window_nll": _read(context, context.model, chosen, chunked)}
        elif context.is_dense:
            samples = {"window_nll": _keep(context, chosen, chunked, reference)}
        else:
            if not reference.exists:
                dense_chunked = head_is_plain(context.loaded.model, chosen[:1].to(context.device))
                _keep(context, chosen, dense_chunked, reference)
            samples = _compare(context, chosen, chunked, reference)
        count, seqlen = chosen.shape
        facts = {
            "windows": count,
            "windows_available": len(context.tokens) // (seqlen - (self.bos is Bos.each)),
            "seqlen": seqlen,
            "head": "chunked" if chunked else "whole",
        }
        facts |= {} if self.bos is Bos.first else {"bos": "each window"}
        facts |= {"note": note} if (note := self._note(context)) else {}
        return Measurement(_summary(samples, reference) | facts, samples)

    def against_dense(self, compressed: Measurement, dense: Measurement) -> dict[str, Any]:
        return {"dense": dense.metrics["value"]}


def _read(
    context: EvaluationContext,
    model: "PreTrainedModel",
    chosen: Tensor,
    chunked: bool,
    see: LogProbSink = ignore,
) -> list[float]:
    """Return the mean NLL of every window."""
    label = "perplexity, dense" if model is context.loaded.model else "perplexity, compressed"
    return [
        window_nll(model, window[None].to(context.device), chunked, see)
        for window in context.progress(chosen, label, len(chosen))
    ]


def _keep(context: EvaluationContext, chosen: Tensor, chunked: bool, reference: Reference) -> list[float]:
    """Return the mean NLL of every window under the dense model; keep its predictions if they are not yet."""
    if reference.exists:
        return _read(context, context.loaded.model, chosen, chunked)
    with reference.create() as see:
        return _read(context, context.loaded.model, chosen, chunked, see)


def _compare(
    context: EvaluationContext, chosen: Tensor, chunked: bool, reference: Reference
) -> dict[str, list[float]]:
    """Return the mean NLL, mean KL and flip rate of every window."""
    names = ("window_nll", "window_kl", "window_flips", "window_ties")
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number, window in enumerate(context.progress(chosen, "perplexity, compressed", len(chosen))):
        distance = Distance(reference.window(number, context.device))
        samples["window_nll"].append(
            window_nll(context.model, window[None].to(context.device), chunked, distance.add)
        )
        samples["window_kl"].append(distance.mean_kl)
        samples["window_flips"].append(distance.flip_rate)
        samples["window_ties"].append(distance.tie_rate)
    return samples


def _summary(samples: dict[str, list[float]], reference: Reference | None) -> dict[str, Any]:
    """Return means over tokens: windows are of one length, so these are the means of the windows' means."""
    nll = fmean(samples["window_nll"])
    metrics: dict[str, Any] = {"value": exp(nll) if not nll > LARGEST_NLL else inf, "nll": nll}
    if "window_kl" in samples and reference is not None:
        metrics |= {
            "kl": fmean(samples["window_kl"]),
            "kl_top_k": reference.top_k,
            "flip_rate": fmean(samples["window_flips"]),
            "tie_rate": fmean(samples["window_ties"]),
            "ties": "the first of equally probable tokens counts, as in argmax",
        }
    return metrics


@torch.inference_mode()
def window_nll(
    model: "PreTrainedModel", ids: Tensor, chunked: bool = True, see: LogProbSink = ignore
) -> float:
    """Return the mean NLL in nats of the tokens of one window after the first.

    Args:
        model: any causal language model.
        ids: the window, int64 (1, seqlen).
        chunked: apply the head by itself to chunks of positions; valid only if `head_is_plain`.
        see: called with the log-probabilities, float32 (positions, vocabulary), in order; may overwrite them.
    """
    targets, total, start = ids[0, 1:], 0.0, 0
    for log_probabilities in read_window(model, ids, chunked):
        wanted = targets[start : start + len(log_probabilities), None]
        total -= log_probabilities.gather(1, wanted).double().sum().item()
        see(log_probabilities)
        start += len(wanted)
    return total / len(targets)
