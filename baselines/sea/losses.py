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


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(softmax teacher ‖ softmax student) of logits (..., n), summed over n, the mean of the rest.

    A logit of −∞ in both takes no part.
    """
    wanted, found = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    difference = (wanted - found).masked_fill(wanted == -torch.inf, 0.0)
    return (wanted.exp() * difference).sum(-1).mean()


def alike(teacher: Tensor, student: Tensor, weight: float) -> Tensor:
    """Return weight · KL + MSE of the probabilities of logits (..., keys)."""
    distance = mse_loss(student.float().softmax(-1), teacher.float().softmax(-1))
    return weight * divergence(teacher, student) + distance


def hidden_distance(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Return the mean over blocks of the MSE of hidden states, each (batch, tokens, hidden)."""
    pairs = zip(teacher, student, strict=True)
    return torch.stack([mse_loss(found.float(), wanted.float()) for wanted, found in pairs]).mean()
