"""Entropy of single tokens: the lowest mean NLL on a text of a model that looks at no token before.

    H = −Σ_w p(w) ln p(w),   p(w) = share of w among the tokens that perplexity scores

p is read off the evaluated text itself, so no fixed distribution does better. A model whose NLL on the same
windows is lower has learned from context; one above it may have learned frequencies only. It is a number of
text and tokenizer, the same for every model and method that shares them.
"""

from dataclasses import dataclass
from math import exp
from typing import ClassVar

from torch import Tensor

from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from sinq.common.options import check, whole


@dataclass(frozen=True)
class Unigram(Evaluation):
    """Entropy of the tokens of the evaluation text. Defaults are those of `Perplexity`."""

    name: ClassVar[str] = "unigram"

    windows: int | None = None
    """Number of windows, from the start of the text; null for all."""
    seqlen: int = 2048
    """Tokens of a window, of which the first is not scored; at most the model's context."""

    def __post_init__(self) -> None:
        check(self, "evaluation.unigram", windows=whole(1), seqlen=whole(2))

    def measure(self, context: EvaluationContext) -> Measurement:
        """Return the entropy in nats, its exponential, and the number of tokens and of distinct ones."""
        chosen = context.windows("evaluation.unigram", self.seqlen, self.windows)
        counts = chosen[:, 1:].flatten().bincount()
        value = entropy(counts)
        count, seqlen = chosen.shape
        facts = {"tokens": int(counts.sum()), "distinct": int((counts > 0).sum())}
        facts |= {"windows": count, "seqlen": seqlen}
        return Measurement({"entropy": value, "perplexity": exp(value)} | facts)


def entropy(counts: Tensor) -> float:
    """Return the entropy in nats of the distribution that counts, or other weights, are proportional to."""
    weights = counts.double().flatten()
    shares = weights[weights > 0] / weights.sum()
    return -(shares * shares.log()).sum().item()
