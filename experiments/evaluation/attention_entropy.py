"""Entropy of attention by layer: −Σ_j a_j ln(a_j + 1e-8) nats, the mean over heads, queries and windows.

A query that looks at one token has entropy 0; one that looks at t tokens alike, ln t. JoMA (arXiv 2310.00535)
reads the training of a transformer from it: attention grows sparse, then, with a nonlinear MLP, wider again.
That is a statement about checkpoints; the entropy of one model says nothing about it.

The mean depends on the length of the windows, since early queries have few tokens to look at. So a row has
the length, and beside the mean that of causal attention which looks at all tokens alike, `uniform`: 2.632
nats at 35 tokens. Only rows of equal length compare. Entropies of heads are averaged; that of averaged heads
would be another number. Keys of a prefix count like any others, and `uniform` leaves them out.

Covered is attention with probabilities in four dimensions (`sinq/model/attention_probabilities.py`); a model
that shows other than one of them in each block is refused.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from sinq import NotApplicable
from sinq.common.options import check, whole
from sinq.model.attention import attentions
from sinq.model.attention_probabilities import Probabilities

ADDED = 1e-8
"""Number below the logarithm, as in JoMA's code: 0 ln 0 is 0."""


@dataclass(frozen=True)
class AttentionEntropy(Evaluation):
    """Entropy of the attention of every layer."""

    name: ClassVar[str] = "attention_entropy"

    windows: int | None = 4
    """Number of windows, from the start of the text; null for all."""
    seqlen: int = 512
    """Tokens of a window; at most the model's context."""

    def __post_init__(self) -> None:
        check(self, "evaluation.attention_entropy", windows=whole(1), seqlen=whole(2))

    def check(self, context: EvaluationContext) -> None:
        first = self._windows(context)[:1, :TRIAL_TOKENS]
        with tried(self.name, context), torch.inference_mode():
            names = list(attentions(context.loaded.model))
            seen = len(_entropies(context.loaded.model, first.to(context.device)))
            if seen != len(names):
                raise NotApplicable(f"{seen} attentions with probabilities are seen in {len(names)} blocks")

    def _windows(self, context: EvaluationContext) -> Tensor:
        return context.windows("evaluation.attention_entropy", self.seqlen, self.windows)

    @torch.inference_mode()
    def measure(self, context: EvaluationContext) -> Measurement:
        """Return the mean, the entropy of uniform attention, and the entropy of each attention module."""
        chosen, names = self._windows(context), list(attentions(context.model))
        by_window = [
            _entropies(context.model, window[None].to(context.device))
            for window in context.progress(chosen, "attention entropy", len(chosen))
        ]
        means = torch.tensor(by_window, dtype=torch.float64).mean(0).tolist()
        entropy = dict(zip(names, means, strict=True))
        count, seqlen = chosen.shape
        metrics = {"mean": fmean(means), "min": min(means), "max": max(means), "uniform": uniform(seqlen)}
        facts = {"layers": len(names), "tokens": chosen.numel(), "windows": count, "seqlen": seqlen}
        return Measurement(metrics | facts, {"entropy": entropy})


def _entropies(model: torch.nn.Module, ids: Tensor) -> list[float]:
    """Return the mean entropy of each attention in a pass over ids (batch, tokens), in nats."""
    with Probabilities(mean_entropy) as attention:
        model.base_model(input_ids=ids, use_cache=False)  # type: ignore[operator]
    return [seen.item() for seen in attention.seen]


def mean_entropy(probabilities: Tensor) -> Tensor:
    """Return the mean entropy, a scalar, of probabilities (..., keys), in nats."""
    p = probabilities.float()
    return -(p * (p + ADDED).log()).sum(-1).mean()


def uniform(tokens: int) -> float:
    """Return the mean entropy of causal attention that looks at all tokens alike: Σ ln t / T."""
    return torch.arange(1, tokens + 1, dtype=torch.float64).log().mean().item()
