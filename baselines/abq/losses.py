"""Losses of ABQ-LLM (arXiv 2408.08554): distribution correction of outputs (DLC) and attention (AKL).

    DLC = −log|mean cos(d_q, d_fp)| − log|mean cos(d_q, d_fp*)|
    AKL = |KL(A_fp ‖ A_q)| + |KL(A_q ‖ A_fp)|

d are outputs of a block: rounded, dense behind dense blocks, dense behind rounded blocks. cos is over hidden
channels, the mean over tokens. A are attention probabilities, the mean of all heads; KL is a mean over
queries (the sources do not say).
"""

import torch
from torch import Tensor

SMALLEST = 1e-8
"""Added to probabilities before their logarithm: a causal mask makes most of them 0."""


def correction(found: Tensor, target: Tensor) -> Tensor:
    """Return −log|mean cos| of outputs (…, tokens, hidden)."""
    return -torch.nn.functional.cosine_similarity(found, target, dim=-1).mean().abs().log()


def attention_divergence(found: Tensor, target: Tensor, released: bool = False) -> Tensor:
    """Return AKL of probabilities (…, queries, keys).

    Args:
        released: as in the authors' code, take another softmax of both first, which sees masked keys too, and
            divide by the number of keys, so that AKL hardly counts beside the other losses.
    """
    if not released:
        return _divergence(target, found).abs() + _divergence(found, target).abs()
    one, other = found.softmax(-1), target.softmax(-1)
    return (_divergence(other, one).abs() + _divergence(one, other).abs()) / found.shape[-1]


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return KL(one ‖ other), a mean over queries."""
    return (one * ((one + SMALLEST).log() - (other + SMALLEST).log())).sum(-1).mean()
