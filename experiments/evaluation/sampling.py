"""Sampling: text that a model writes itself, token by token, from its own probabilities."""

from collections.abc import Callable
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
    tokens: int,
    draw: Callable[[Tensor], Tensor],
    progress: Progress = silent,
) -> Tensor:
    """Return texts that begin with given tokens, int64 (batch, tokens), on the CPU.

    Args:
        first: first token of each text, int64 (batch,).
        tokens: length of each text.
        draw: function from logits (batch, 1, vocabulary) to the next tokens (batch, 1).
    """
    start = first[:, None].to(next(model.parameters()).device)
    if tokens == 1:
        return start.cpu()
    step = prefill(model, start)
    for _ in progress(range(tokens - 1), "sampling tokens", tokens - 1):
        step = decode(model, step, 1, draw)
    return step.tokens.cpu()


def drawing(temperature: float, allowed: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a function that draws tokens by softmax(logits / temperature).

    Args:
        temperature: above 0; 1 draws from the model's own probabilities.
        allowed: ids that may be drawn, int64.
        generator: of the CPU, so that every device draws the same from the same logits.
    """
    return partial(_draw, temperature=temperature, allowed=allowed, generator=generator)


def _draw(logits: Tensor, temperature: float, allowed: Tensor, generator: torch.Generator) -> Tensor:
    scores = logits[:, -1].cpu().float()[:, allowed] / temperature
    chosen = torch.multinomial(scores.softmax(-1), 1, generator=generator)
    return allowed[chosen].to(logits.device)
