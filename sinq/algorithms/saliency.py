"""Saliency of channels by SpikeLLM's first-order measure (arXiv 2407.04752), and the choice of channels.

Of the inputs x_t of a layer, the measure is the gradient of ½‖W x_t‖² times the inputs,

    S[t, c] = (x_t Wᵀ W)_c · x_{t, c},        Σ_c S[t, c] = ‖W x_t‖²

averaged over tokens, signed, without a magnitude. The mean is diag(Wᵀ W H) with H = XᵀX / tokens, so the
Hessian that other methods collect is all it needs. It does not change if a factor of a channel moves from W
to x. Keys meet queries as inputs meet weights, (k_t Qᵀ Q)_c · k_{t, c}, and values meet probabilities, which
makes the sum of squares of what attention returns. Its reviewers note that the measure does not follow from
the loss that the paper states: it is a heuristic, to be compared with channels that are drawn.
"""

import math

import torch
from torch import Tensor


def first_order(weight: Tensor, hessian: Tensor) -> Tensor:
    """Return diag(Wᵀ W H), float64 (..., in).

    Args:
        weight: (..., out, in).
        hessian: (..., in, in).
    """
    wide = weight.double()
    return ((wide.mT @ wide) * hessian.double().mT).sum(-1)


def salient_count(channels: int, share: float) -> int:
    """Return the number of salient channels, n − ⌊(1 − share) n⌋, as the release has it."""
    return channels - math.floor(round((1 - share) * channels, 6))  # 0.95 · 20 is 18.999…


def largest(score: Tensor, share: float) -> Tensor:
    """Return True for the share of channels of the largest score, (in,); of equal ones the first is taken."""
    mask = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    order = score.argsort(descending=True, stable=True)
    mask[order[: salient_count(len(score), share)]] = True
    return mask


def drawn(channels: int, share: float, seed: int) -> Tensor:
    """Return True for a share of channels that are drawn by lot, (in,)."""
    return largest(torch.rand(channels, generator=torch.Generator().manual_seed(seed)), share)
