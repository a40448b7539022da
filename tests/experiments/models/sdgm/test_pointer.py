"""Context and copies against loops, and what a mixture of two distributions must be."""

import math

import pytest
import torch

from experiments.models.sdgm.pointer import Context, mixture, pointed


def test_contexts_and_weights_are_those_of_loops() -> None:
    torch.manual_seed(0)
    query, hidden, ids = torch.randn(2, 13, 4), torch.randn(2, 13, 4), torch.randint(9, (2, 13))
    found = pointed(query, hidden, ids, 5)
    context = torch.cat([each.context for each in found], 1)
    for b in range(2):
        for t in range(13):
            window = range(max(0, t - 4), t + 1)
            scores = [math.exp((query[b, t] @ hidden[b, i]).item() / 2) for i in window]
            expected = sum(s / sum(scores) * hidden[b, i] for s, i in zip(scores, window, strict=True))
            assert torch.allclose(context[b, t], expected, atol=1e-5)  # type: ignore[arg-type]


def test_queries_of_the_last_tokens_find_the_same() -> None:
    torch.manual_seed(0)
    hidden, ids = torch.randn(1, 13, 4), torch.randint(9, (1, 13))
    whole = torch.cat([each.context for each in pointed(hidden, hidden, ids, 5)], 1)
    (last,) = pointed(hidden[:, -1:], hidden, ids, 5)
    assert torch.allclose(last.context, whole[:, -1:], atol=1e-6)


def test_a_mixture_is_that_of_loops() -> None:
    torch.manual_seed(0)
    hidden, ids, gate = torch.randn(2, 11, 4), torch.randint(9, (2, 11)), torch.rand(2, 11, 1)
    logits, found = torch.randn(2, 11, 9), pointed(hidden, hidden, ids, 4)
    mixed = mixture(logits, gate, found).exp()
    assert torch.allclose(mixed.sum(-1), torch.ones(2, 11), atol=1e-6)
    for b in range(2):
        for t in range(11):
            window = range(max(0, t - 3), t + 1)
            scores = torch.tensor([(hidden[b, t] @ hidden[b, i]).item() / 2 for i in window]).softmax(0)
            expected = gate[b, t] * logits[b, t].softmax(0)
            for share, i in zip(scores, window, strict=True):
                expected[ids[b, i]] += (1 - gate[b, t, 0]) * share
            assert torch.allclose(mixed[b, t], expected, atol=1e-6)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_a_closed_gate_leaves_one_distribution(gate: float) -> None:
    torch.manual_seed(0)
    hidden, ids, logits = torch.randn(1, 7, 4), torch.randint(9, (1, 7)), torch.randn(1, 7, 20)
    mixed = mixture(logits, torch.full((1, 7, 1), gate), pointed(hidden, hidden, ids, 3)).exp()
    if gate == 1.0:
        assert torch.allclose(mixed, logits.softmax(-1), atol=1e-6)
    for t in range(7):
        outside = torch.ones(20, dtype=torch.bool)
        outside[ids[0, max(0, t - 2) : t + 1]] = False
        assert bool((mixed[0, t, outside] < 1e-20).all()) is (gate == 0.0)


def test_the_gate_is_of_hidden_state_and_context() -> None:
    context = Context(4, 3)
    both, gate, _ = context(*[torch.randn(2, 6, 4)] * 2, torch.randint(9, (2, 6)))
    assert both.shape == (2, 6, 8)
    assert torch.allclose(gate, torch.sigmoid(both @ context.gate.weight.T + context.gate.bias))
