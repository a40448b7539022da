"""Sampling: text that a model writes itself, token by token, from its own probabilities.

Each token is drawn by one uniform number of its own, through the inverse of the cumulated probabilities. So
a text depends on its first token and its numbers, not on which texts are sampled beside it, nor on the
device (but for rounding).
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.evaluation.generation import decode, prefill
from sinq.common.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sample(
    model: "PreTrainedModel",
    first: Tensor,
    uniform: Tensor,
    allowed: Tensor,
    temperature: float = 1.0,
    progress: Progress = silent,
) -> Tensor:
    """Return texts that begin with given tokens, int64 (batch, 1 + drawn), on the CPU.

    Args:
        first: first token of each text, int64 (batch,).
        uniform: numbers in [0, 1) that decide each later token, (batch, drawn).
        allowed: ids that may be drawn, int64.
        temperature: see `draw_token`.
    """
    start = first[:, None].to(next(model.parameters()).device)
    if not uniform.shape[1]:
        return start.cpu()
    step = prefill(model, start)
    for numbers in progress(uniform.split(1, dim=1), "sampling tokens", uniform.shape[1]):
        draw = partial(draw_token, uniform=numbers, allowed=allowed, temperature=temperature)
        step = decode(model, step, 1, draw)
    return step.tokens.cpu()


def draw_token(logits: Tensor, uniform: Tensor, allowed: Tensor, temperature: float = 1.0) -> Tensor:
    """Return tokens drawn by softmax(logits / temperature), int64 (batch, 1).

    Args:
        logits: (batch, 1, vocabulary).
        uniform: numbers in [0, 1), (batch, 1): a token is drawn if they fall into its share.
        allowed: ids that may be drawn, int64.
        temperature: above 0; 1 draws from the model's own probabilities.
    """
    allowed = allowed.to(logits.device)
    cumulated = (logits[:, -1, allowed].double() / temperature).softmax(-1).cumsum(-1)
    index = torch.searchsorted(cumulated, uniform.to(cumulated) * cumulated[:, -1:], right=True)
    return allowed[index.clamp_max(len(allowed) - 1)]
