"""Perplexity: exp of the mean negative log-likelihood (NLL) of the next token; distance to the dense model.

Windows of `seqlen` tokens do not overlap; each has seqlen − 1 targets; no token is scored twice, and none
with context from another window. NLL is in float32, sums are in float64. Every window's mean is kept, so that
two models can be compared window by window.

With `top_k`, the dense model's run keeps its predictions. In the same pass, the run of a compressed model
reports `kl` (mean nats per token, a lower bound of the exact divergence), `flip_rate` (share of positions
whose most probable token changed) and `tie_rate` (share where it is not the only one); see `divergence.py`.
With `exact`, it reports the divergence over the whole vocabulary and its distribution; see `predictions.py`.
"""

import logging
import sys
from dataclasses import dataclass
from math import exp, inf
from math import log as natural_logarithm
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from experiments.data.bos import Bos, advice
from experiments.evaluation import predictions
from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from experiments.evaluation.logits import head_is_plain
from experiments.evaluation.positions import Numbers, Positions
from experiments.evaluation.text_pass import Compared, Kept, read_compressed, read_dense, token_nll
from sinq.common.options import check, whole

log = logging.getLogger(__name__)
TIES = "the first of equally probable tokens counts, as in argmax"
BLOCK, BLOCKS = 128, 512
"""Fewest positions of a block, and about the most blocks that a row keeps."""
MOST_TRACED = 4
"""Most windows whose tokens a row keeps: 2,047 tokens are about 50 kB of it."""
LARGEST_NLL = natural_logarithm(sys.float_info.max)
"""Largest NLL whose perplexity is a number, 709 nats."""


@dataclass(frozen=True)
class Perplexity(Evaluation):
    """Perplexity of the evaluation text, and divergence from the dense model on it."""

    name: ClassVar[str] = "perplexity"

    windows: int | None = None
    """Number of windows, from the start of the text; null for all."""
    seqlen: int = 2048
    """Tokens of a window; at most the model's context."""
    top_k: int | None = 64
    """Number of the dense model's most probable tokens in the lower bound `kl`; null for none."""
    exact: bool = False
    """Measure the exact divergence too, with its distribution; one more product with the head."""
    trace: int = 0
    """Number of windows of which the row keeps the exact divergence and Δp of every token, with its id."""
    bos: Bos = Bos.first
    """The windows that begin with the token of beginning: `first`, as the tokenizer does, or `each`."""

    def __post_init__(self) -> None:
        traced = whole(0, MOST_TRACED)
        check(self, "evaluation.perplexity", windows=whole(1), seqlen=whole(2), top_k=whole(1), trace=traced)
        if self.trace and not self.exact:
            raise ValueError(
                f"evaluation.perplexity.trace is {self.trace}, which needs evaluation.perplexity.exact=true"
            )

    def check(self, context: EvaluationContext) -> None:
        first = self._windows(context)[:1].to(context.device)
        with tried(self.name, context):
            head_is_plain(context.loaded.model, first)
            token_nll(context.loaded.model, first[:, :TRIAL_TOKENS], chunked=False)
        if note := self._note(context):
            log.info("evaluation.perplexity: %s", note)

    def _note(self, context: EvaluationContext) -> str | None:
        return advice(context.loaded.model.config.model_type, self.bos, "evaluation.perplexity.bos")

    def _windows(self, context: EvaluationContext) -> Tensor:
        return context.windows("evaluation.perplexity", self.seqlen, self.windows, self.bos)

    def measure(self, context: EvaluationContext) -> Measurement:
        chosen = self._windows(context)
        kept = Kept.of(context, chosen, self.top_k, self.exact)
        chunked = head_is_plain(context.model, chosen[:1].to(context.device))
        if context.is_dense or not kept.is_there:
            compared = Compared(read_dense(context, chosen, kept), [], [])
        if not context.is_dense:
            compared = read_compressed(context, chosen, chunked, kept)
        metrics, samples = _likelihood(compared.nll)
        for more in (_bound(compared, kept), _exact(compared, kept, self.trace)):
            metrics, samples = metrics | more.metrics, samples | more.samples
        return Measurement(metrics | self._facts(context, chosen, chunked), samples)

    def _facts(self, context: EvaluationContext, chosen: Tensor, chunked: bool) -> dict[str, Any]:
        """Return what was read, and how."""
        count, seqlen = chosen.shape
        facts = {
            "windows": count,
            "windows_available": len(context.tokens) // (seqlen - (self.bos is Bos.each)),
            "seqlen": seqlen,
            "head": "chunked" if chunked else "whole",
        }
        facts |= {} if self.bos is Bos.first else {"bos": "each window"}
        return facts | ({"note": note} if (note := self._note(context)) else {})

    def against_dense(self, compressed: Measurement, dense: Measurement) -> dict[str, Any]:
        return {"dense": dense.metrics["value"]}


def _likelihood(nll: Numbers) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return metrics and samples of NLL (windows, positions): means of the text, of windows, of blocks."""
    mean = float(nll.mean())
    metrics: dict[str, Any] = {"value": exp(mean) if not mean > LARGEST_NLL else inf, "nll": mean}
    samples: dict[str, Any] = {"window_nll": nll.mean(1).tolist()}
    if (count := blocks_of(*nll.shape)) > 1:
        metrics["blocks_per_window"] = count
        samples["block_nll"] = in_blocks(nll, count)
    return metrics, samples


def _bound(compared: Compared, kept: Kept) -> Measurement:
    """Return the lower bound of the divergence: windows are of one length, so means are means of windows'."""
    if kept.bound is None or not compared.distances:
        return Measurement({})
    samples = {
        "window_kl": [each.mean_kl for each in compared.distances],
        "window_flips": [each.flip_rate for each in compared.distances],
        "window_ties": [each.tie_rate for each in compared.distances],
    }
    metrics = {
        "kl": fmean(samples["window_kl"]),
        "kl_top_k": kept.bound.top_k,
        "flip_rate": fmean(samples["window_flips"]),
        "tie_rate": fmean(samples["window_ties"]),
        "ties": TIES,
    }
    return Measurement(metrics, samples)


def _exact(compared: Compared, kept: Kept, trace: int) -> Measurement:
    """Return the exact divergence and its distribution."""
    if kept.exact is None or not compared.changed:
        return Measurement({})
    whole = Positions.joined(compared.changed)
    shape = compared.nll.shape
    windows: dict[str, Any] = {
        "window_divergence": whole.kl.reshape(shape).mean(1).tolist(),
        "window_same_top": (1 - whole.flipped.reshape(shape)).mean(1).tolist(),
        "window_delta_p": whole.delta_p.reshape(shape).mean(1).tolist(),
    }
    if trace:
        windows["trace"] = [predictions.trace(each) for each in compared.changed[:trace]]
    how = {"dense": "kept states" if kept.exact.plain else "run beside it", "ties": TIES}
    return Measurement(
        {"divergence": predictions.metrics(whole) | how}, windows | predictions.groups(whole, shape[1])
    )


def in_blocks(values: Numbers, count: int) -> list[float]:
    """Return values (windows, positions) as `count` numbers for each window, whose mean is the window's.

    Blocks differ by a position at most; each number is its block's sum over the mean length of blocks.
    """
    length = values.shape[1] / count
    return [float(block.sum() / length) for window in values for block in np.array_split(window, count)]


def blocks_of(windows: int, positions: int) -> int:
    """Return the number of blocks that each window has: of `BLOCK` positions or more, `BLOCKS` in all."""
    return max(1, min(positions // BLOCK, BLOCKS // windows))
