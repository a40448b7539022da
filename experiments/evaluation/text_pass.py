"""Passes of a model over the evaluation windows: likelihoods, and distances from the dense model.

The dense model's pass keeps what distances need (`Kept`); a compressed model's pass reads it. Where it is not
kept yet, the dense model runs first.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from experiments.evaluation.base import EvaluationContext
from experiments.evaluation.dense_predictions import DensePredictions
from experiments.evaluation.divergence import Distance, Reference
from experiments.evaluation.logits import Sink, head_is_plain, ignore, read_window
from experiments.evaluation.positions import Changes, Numbers, Positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Kept:
    """Predictions of the dense model that are kept, on evaluation windows; nothing, if both are None."""

    bound: Reference | None
    exact: DensePredictions | None

    @classmethod
    def of(cls, context: EvaluationContext, windows: Tensor, top_k: int | None, exact: bool) -> Self:
        """Return what is kept for windows, int64 (n, seqlen)."""
        bound = None if top_k is None else Reference.of(context, windows, top_k)
        if not exact:
            return cls(bound, None)
        plain = head_is_plain(context.loaded.model, windows[:1].to(context.device))
        return cls(bound, DensePredictions.of(context, windows, plain))

    @property
    def is_there(self) -> bool:
        """True if all of it was written before."""
        return (self.bound is None or self.bound.exists) and (self.exact is None or self.exact.exist)


@dataclass(frozen=True)
class Compared:
    """Result of a compressed model's pass."""

    nll: Numbers
    """Negative log-likelihood in nats of each token after a window's first, (windows, positions)."""
    distances: list[Distance]
    """The lower bound, of each window; empty where it was not asked for."""
    changed: list[Positions]
    """The exact changes, of each window; empty where they were not asked for."""


def read_dense(context: EvaluationContext, windows: Tensor, kept: Kept) -> Numbers:
    """Return the dense model's negative log-likelihoods (windows, positions); keep what is not kept yet."""
    with ExitStack() as stack:
        see: Sink = ignore
        keep: Sink = ignore
        if kept.bound is not None and not kept.bound.exists:
            see = stack.enter_context(kept.bound.create())
        if kept.exact is not None and not kept.exact.exist:
            keep = stack.enter_context(kept.exact.create())
        model = context.loaded.model
        chunked = head_is_plain(model, windows[:1].to(context.device))
        passed = _windows(context, windows, "perplexity, dense")
        return np.stack([token_nll(model, ids, chunked, see, keep) for ids in passed])


def read_compressed(context: EvaluationContext, windows: Tensor, chunked: bool, kept: Kept) -> Compared:
    """Return the compressed model's negative log-likelihoods and how far it is from what was kept."""
    result = Compared(np.empty((len(windows), windows.shape[1] - 1)), [], [])
    for number, ids in enumerate(_windows(context, windows, "perplexity, compressed")):
        sinks: list[Sink] = []
        if kept.exact is not None:
            changes = Changes(kept.exact.window(number, ids), ids[0, 1:])
            sinks.append(changes.add)
        if kept.bound is not None:  # last, since it overwrites what it sees
            distance = Distance(kept.bound.window(number, ids.device))
            result.distances.append(distance)
            sinks.append(distance.add)
        result.nll[number] = token_nll(context.model, ids, chunked, _all(sinks))
        if kept.exact is not None:
            result.changed.append(changes.positions)
    return result


def _windows(context: EvaluationContext, windows: Tensor, label: str) -> Iterator[Tensor]:
    """Yield each window, int64 (1, seqlen), on the device."""
    for window in context.progress(windows, label, len(windows)):
        yield window[None].to(context.device)


def _all(sinks: list[Sink]) -> Sink:
    def see(log_probabilities: Tensor) -> None:
        for sink in sinks:
            sink(log_probabilities)

    return see


@torch.inference_mode()
def token_nll(
    model: "PreTrainedModel",
    ids: Tensor,
    chunked: bool = True,
    see: Sink = ignore,
    keep: Sink = ignore,
) -> Numbers:
    """Return the negative log-likelihood in nats of each token of one window after the first, (seqlen − 1,).

    Args:
        model: any causal language model.
        ids: the window, int64 (1, seqlen).
        chunked: apply the head by itself to chunks of positions; valid only if `head_is_plain`.
        see: called with the log-probabilities, float32 (positions, vocabulary), in order; may overwrite them.
        keep: called once with the states that the head is applied to, where `chunked`.
    """
    targets, start = ids[0, 1:], 0
    found: list[Tensor] = []
    for log_probabilities in read_window(model, ids, chunked, keep):
        wanted = targets[start : start + len(log_probabilities), None]
        found.append(-log_probabilities.gather(1, wanted)[:, 0].double().cpu())
        see(log_probabilities)
        start += len(wanted)
    nll: Numbers = torch.cat(found).numpy()
    return nll
