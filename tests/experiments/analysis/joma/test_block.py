"""The block's gradient, against torch's automatic one."""

from itertools import product

import numpy as np
import pytest
import torch

from experiments.analysis.joma.block import Activation, Attention, Block, Weights, softmax
from experiments.analysis.joma.data import CLASSES, figure

PHI = {Activation.linear: lambda x: x, Activation.relu: torch.relu, Activation.tanh: torch.tanh}


def by_autograd(block: Block, weights: Weights) -> list[torch.Tensor]:
    """Gradient of the mean log-likelihood with U the first columns of an identity, w and u written out."""
    v, z, r = (torch.tensor(each, requires_grad=True) for each in (weights.v, weights.z, weights.r))
    x, queries = torch.tensor(block.x), torch.tensor(block.queries)
    logits = z[queries]
    if block.attention is Attention.linear:
        b = x * logits
    elif block.attention is Attention.exp:
        b = x * (logits / block.temperature).exp()
    else:
        b = (x.log() + logits / block.temperature).softmax(1)
    hidden = PHI[block.activation]((b + block.overlap) @ v.T + r.T[queries])
    likelihood = -torch.nn.functional.cross_entropy(hidden, torch.tensor(block.labels))
    return list(torch.autograd.grad(likelihood, (v, z, r)))


@pytest.mark.parametrize(("attention", "activation"), list(product(Attention, Activation)))
@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_gradient_is_torchs(attention: Attention, activation: Activation, overlap: float) -> None:
    block, start = figure(attention, activation, queries=3, temperature=0.7, overlap=overlap)
    random = np.random.default_rng(1)
    weights = Weights(*(part + random.normal(0, 0.5, part.shape) for part in (start.v, start.z, start.r)))
    found = block.gradient(weights)
    for ours, theirs in zip((found.v, found.z, found.r), by_autograd(block, weights), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-13)


def test_flat_weights_are_read_back() -> None:
    _, weights = figure(Attention.exp, Activation.tanh, queries=2)
    again = weights.like(weights.flat())
    assert all(np.array_equal(getattr(again, part), getattr(weights, part)) for part in "vzr")


def test_softmax_of_large_logits_is_finite() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0], [0.0, -1000.0]])), [[0.5, 0.5], [1, 0]])


@pytest.mark.parametrize("bumps", [True, False])
def test_texts_are_those_of_the_figure(bumps: bool) -> None:
    block, weights = figure(Attention.softmax, Activation.relu, bumps=bumps)
    assert block.x.shape == (CLASSES, 20)
    np.testing.assert_allclose(np.linalg.norm(block.x, axis=1), 1)
    telling = block.x[:, :10].argmax(1)
    assert (telling.tolist() == [k // 2 for k in range(CLASSES)]) is bumps
    assert abs(weights.z).max() < 0.1
    np.testing.assert_allclose(block.attend(weights.z).sum(1), 1)
