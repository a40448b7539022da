"""Entropy of single tokens: against loops, and as a bound that no fixed distribution passes."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation import Unigram
from experiments.evaluation.unigram import entropy
from tests.experiments.tiny import subject


def test_it_is_the_entropy_of_scored_tokens() -> None:
    context = subject(windows=4)
    found = Unigram(windows=3, seqlen=32).measure(context).metrics
    scored = context.tokens[:96].reshape(3, 32)[:, 1:].flatten().tolist()
    counts = Counter(scored)
    by_hand = -sum(count / 93 * math.log(count / 93) for count in counts.values())
    assert found["entropy"] == pytest.approx(by_hand, rel=1e-12)
    assert found["perplexity"] == pytest.approx(math.exp(by_hand), rel=1e-12)
    assert (found["tokens"], found["distinct"]) == (93, len(counts))
    assert (found["windows"], found["seqlen"]) == (3, 32)


def test_known_distributions() -> None:
    assert entropy(torch.tensor([0, 7])) == 0
    assert entropy(torch.tensor([3, 3, 0, 3, 3])) == pytest.approx(math.log(4))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=9).filter(any), st.integers(0, 100))
def test_no_fixed_distribution_has_a_lower_loss(counts: list[int], seed: int) -> None:
    logits = torch.randn(len(counts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    assert entropy(torch.tensor(counts)) <= -(shares * logits.log_softmax(0)).sum().item() + 1e-12


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.unigram\.seqlen=1 is not possible"):
        Unigram(seqlen=1)
