"""Losses of SEA's distillation (arXiv 2310.01777, and its authors' code for weights and reductions).

For each attention, against the frozen teacher's scores s* and output o*, with an estimate ŷ at the keys of
its blocks and the student's own scores s (all −∞ at later keys):

    approximation = w · KL(softmax s* ‖ softmax ŷ) + MSE(softmax ŷ, softmax s*)
    probabilities = w · KL(softmax s* ‖ softmax s) + MSE(softmax s, softmax s*)
    context       = MSE(o*, o)

and for the model, with hidden states h behind each block,

    next_token · CE + hidden · mean over blocks MSE(h*, h) + logits · KL(teacher ‖ student)
        + mean over attentions (approximation + probabilities + context)

The divergence is a sum over keys (over the vocabulary), and a mean over everything else; the choice of kept
blocks has no gradient, so the estimator learns from `approximation` alone, and its gates from the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sinq.common.options import check, number

LEAST = -87.0
"""Logarithm of a probability that float32 just has."""


@dataclass(frozen=True)
class Losses:
    """Weights of the losses; those of the authors' code."""

    divergence: float = 0.1
    """Weight w of the divergences of attention."""
    next_token: float = 0.1
    hidden: float = 5.0
    logits: float = 0.2

    def __post_init__(self) -> None:
        weight = number(least=0)
        check(self, "losses", divergence=weight, next_token=weight, hidden=weight, logits=weight)


def exp(logarithms: Tensor) -> Tensor:
    """Return the exponential of log-probabilities; one below e^−87 is that, which is as good as 0.

    On a CPU the exponential of what is far below its range takes ten times as long.
    """
    return logarithms.clamp_min(LEAST).exp()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(p ‖ q) of log-probabilities (..., n) of p and q, summed over n, the mean of the rest.

    Where p has no probability, both are finite.
    """
    return (exp(teacher) * (teacher - student)).sum(-1).mean()


def alike(teacher: Tensor, student: Tensor, weight: float) -> Tensor:
    """Return weight · KL + MSE of the probabilities, of log-probabilities (..., keys)."""
    return weight * divergence(teacher, student) + mse_loss(exp(student), exp(teacher))


def hidden_distance(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Return the mean over blocks of the MSE of hidden states, each (batch, tokens, hidden)."""
    pairs = zip(teacher, student, strict=True)
    return torch.stack([mse_loss(found.float(), wanted.float()) for wanted, found in pairs]).mean()
