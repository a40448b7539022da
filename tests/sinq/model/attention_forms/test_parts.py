"""Parts of attention's forms: linear attention, the choice of keys, and what reaches an estimate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinq.algorithms.key_blocks import block_index, block_sizes, causal, causal_lengths, stretched
from sinq.model.attention_forms.estimator import Estimator, EstimatorShape, causal_convolution
from sinq.model.attention_forms.linear import (
    CHUNK,
    FLOOR,
    feature_count,
    features,
    linear_attention,
    orthogonal_features,
    running_mean,
)
from sinq.model.attention_forms.selection import highest_mask, kept_blocks, kept_counts, local_mask
from sinq.model.attention_forms.sparse import jittered, masked_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize("tokens", [1, 5, CHUNK, 2 * CHUNK + 3])
def test_linear_attention_is_the_quotient_of_two_sums(tokens: int) -> None:
    query, key = (torch.rand(2, tokens, 5, dtype=torch.float64) + 0.01 for _ in range(2))
    value = torch.randn(2, tokens, 3, dtype=torch.float64)
    weights = (query @ key.mT).tril()
    expected = weights @ value / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(linear_attention(query, key, value), expected, rtol=1e-9, atol=1e-9)


def test_features_are_positive_and_have_the_scale_of_the_scores() -> None:
    x, omega = torch.randn(7, 6), torch.randn(9, 6)
    expected = (x.double() * 0.25 @ omega.double().T).clamp_min(0) + FLOOR
    torch.testing.assert_close(features(x, omega, 1 / 16).double(), expected, rtol=1e-5, atol=1e-6)


@given(width=st.integers(2, 20), count=st.integers(1, 50), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_random_features_are_orthogonal_in_each_block(width: int, count: int, seed: int) -> None:
    omega = orthogonal_features(count, width, torch.Generator().manual_seed(seed))
    assert omega.shape == (count, width)
    for block in omega.split(width):
        products = torch.nn.functional.normalize(block, dim=1) @ torch.nn.functional.normalize(block, dim=1).T
        torch.testing.assert_close(products, torch.eye(len(block)), rtol=0, atol=1e-5)


def test_the_published_number_of_features() -> None:
    assert feature_count(64, 8.0) == 33
    assert feature_count(2, 8.0) == 1


def test_a_running_mean_is_the_mean_of_what_was_seen() -> None:
    value = torch.randn(2, 9, 3)
    for t in range(9):
        torch.testing.assert_close(running_mean(value)[:, t], value[:, : t + 1].mean(1))


@given(
    tokens=st.integers(1, 300), blocks=st.sampled_from([4, 16, 64]), keys=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_a_head_keeps_k_keys_on_average_at_every_length(
    tokens: int, blocks: int, keys: int, seed: int
) -> None:
    heads = 8
    estimate = torch.randn(1, heads, tokens, blocks, generator=torch.Generator().manual_seed(seed))
    kept = kept_blocks(estimate, keys)
    lengths = causal_lengths(tokens, CPU)
    assert torch.equal(kept.sum((1, 3))[0], kept_counts(lengths, heads, keys, blocks))
    mask = stretched(kept, block_index(tokens, blocks, CPU)) & causal(tokens, CPU)
    chosen = mask.sum(-1).float()  # (1, heads, tokens)
    assert bool((chosen.sum(1) >= 1).all())
    assert bool((chosen[..., :keys] == lengths[:keys]).all())  # all that is seen
    largest = block_sizes(lengths, blocks).amax(1)
    wanted = torch.minimum(torch.tensor(float(keys)), lengths.float())
    assert bool(((chosen.mean(1) - wanted).abs() <= largest).all())


@pytest.mark.parametrize("tokens", [256, 1024])
def test_the_number_of_keys_does_not_grow(tokens: int) -> None:
    estimate = torch.randn(1, 4, tokens, 64, generator=torch.Generator().manual_seed(0))
    sizes = block_sizes(causal_lengths(tokens, CPU), 64)
    chosen = (kept_blocks(estimate, 16) * sizes).sum(-1).float().mean(1)[0, 16:]
    assert abs(chosen.mean().item() - 16) < 0.3


def test_the_highest_blocks_of_all_heads_together_are_kept() -> None:
    estimate = torch.randn(2, 3, 60, 8, generator=torch.Generator().manual_seed(0))
    kept = kept_blocks(estimate, 5)
    counts = kept_counts(causal_lengths(60, CPU), 3, 5, 8)
    for t in (30, 59):
        probability = estimate[1, :, t].double().softmax(-1)
        order = probability.flatten().argsort(descending=True)[: counts[t]]
        assert set(order.tolist()) == set(kept[1, :, t].flatten().nonzero().flatten().tolist())


def test_a_long_text_is_chosen_for_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = torch.randn(1, 2, 50, 8)
    whole = kept_blocks(estimate, 4)
    monkeypatch.setattr("sinq.model.attention_forms.selection.QUERIES_AT_ONCE", 7)
    assert torch.equal(kept_blocks(estimate, 4), whole)


def test_masks_of_the_last_and_of_the_highest_keys() -> None:
    mask = local_mask(6, 3, CPU)
    assert [mask[t].nonzero().flatten().tolist() for t in (0, 2, 5)] == [[0], [0, 1, 2], [3, 4, 5]]
    scores = torch.tensor([[1.0, -math.inf, -math.inf], [3.0, 1.0, -math.inf], [1.0, 3.0, 2.0]])
    assert highest_mask(scores, 2).tolist() == [
        [True, False, False],
        [True, True, False],
        [False, True, True],
    ]


def test_masked_attention_without_keys_is_zero() -> None:
    states = torch.randn(1, 2, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[2] = False
    found = masked_attention(states, states, states, mask, 0.3)
    assert not found[:, :, 2].any()
    assert found[:, :, [0, 1, 3]].abs().amin() > 0


def test_jitter_moves_some_keys_by_one_block_inside_the_range() -> None:
    torch.manual_seed(0)
    index = block_index(200, 8, CPU)
    moves = jittered(index, 8, 0.75) - index
    assert set(moves.unique().tolist()) == {-1, 0, 1}
    assert 0.2 < float((moves != 0).float().mean()) < 0.4
    assert jittered(index, 8, 0.0) is index


@torch.no_grad()
def test_an_estimate_reaches_eight_tokens_back_by_its_convolutions() -> None:
    estimator = Estimator(EstimatorShape(2, 8, 16, 40, 2.0))
    estimator.initialize(torch.Generator().manual_seed(0), 0.5)
    assert estimator.gates.bias.tolist() == [0.5, 0.5]
    rows = torch.randn(1, 4, 40, 4)

    def through(rows: torch.Tensor) -> torch.Tensor:
        return causal_convolution(estimator.second, causal_convolution(estimator.first, rows))

    other = rows.clone()
    other[:, :, 20] += 1
    changed = (through(other) - through(rows)).abs().amax((0, 1, 3)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [20, 22, 24, 26, 28]
