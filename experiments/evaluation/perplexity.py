"""Perplexity: exp of the mean negative log-likelihood of the next token.

Windows of `seqlen` tokens that do not overlap; within each, seqlen − 1 targets; no token is scored twice and none with context from
another window. NLL in float32, sums in float64. Every window's mean is kept, so that two models can be compared window by window.

A window's logits are never all in memory (for 2,048 positions and 150,000 words they would be 1.2 GB): the body runs once, the
head in chunks of positions. That is right only where the model's logits are its head applied to its last hidden state, so
this is tried on a few tokens first, and models that do more (soft-capping, scaling) run whole; the row says which.
"""

from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.evaluation.base import Evaluation, Measurement, Subject
from experiments.text import windows

POSITIONS_AT_ONCE = 256
PROBE_TOKENS = 8


@dataclass(frozen=True)
class Perplexity(Evaluation):
    """Perplexity of the evaluation text."""

    windows: int | None = None
    """How many windows, from the start of the text; null for all."""
    seqlen: int = 2048
    """Tokens of a window; the model's context where that is smaller."""

    def __post_init__(self) -> None:
        if self.windows is not None and self.windows < 1:
            raise ValueError(f"evaluation.perplexity.windows={self.windows} is not possible; it must be ≥ 1, or null for all")
        if self.seqlen < 2:
            raise ValueError(f"evaluation.perplexity.seqlen={self.seqlen} is not possible; it must be ≥ 2")

    def check(self, subject: Subject) -> None:
        self._windows(subject)

    def _windows(self, subject: Subject) -> Tensor:
        return windows(subject.tokens, min(self.seqlen, subject.loaded.context), self.windows)

    def measure(self, subject: Subject) -> Measurement:
        chosen = self._windows(subject)
        chunked = head_is_plain(subject.model, chosen[:1, :PROBE_TOKENS].to(subject.device))
        label = "perplexity, dense" if subject.is_dense else "perplexity, compressed"
        nll = [window_nll(subject.model, w[None].to(subject.device), chunked) for w in subject.progress(chosen, label, len(chosen))]
        mean = sum(nll) / len(nll)
        count, seqlen = chosen.shape
        available = len(subject.tokens) // seqlen
        metrics = {"value": exp(mean), "nll": mean, "windows": count, "windows_available": available, "seqlen": seqlen}
        return Measurement(metrics | {"head": "chunked" if chunked else "whole"}, {"window_nll": nll})


@torch.inference_mode()
def window_nll(model: PreTrainedModel, ids: Tensor, chunked: bool = True) -> float:
    """Mean NLL in nats of the tokens of one window, (1, seqlen), after its first."""
    targets = ids[0, 1:]
    if not chunked:
        return _nll_sum(model(input_ids=ids, use_cache=False).logits[0, :-1], targets) / len(targets)
    hidden = _body(model, ids)[0, :-1]
    head: Any = model.get_output_embeddings()
    parts = zip(hidden.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True)
    return sum(_nll_sum(head(states), wanted) for states, wanted in parts) / len(targets)


@torch.inference_mode()
def head_is_plain(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether the model's logits are its output embedding applied to its body's last hidden state."""
    head: Any = model.get_output_embeddings()
    return head is not None and torch.allclose(head(_body(model, ids)), model(input_ids=ids, use_cache=False).logits, rtol=1e-3, atol=1e-3)


def _body(model: PreTrainedModel, ids: Tensor) -> Tensor:
    body: Any = model.base_model
    return body(input_ids=ids, use_cache=False).last_hidden_state


def _nll_sum(logits: Tensor, targets: Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double().sum().item()
