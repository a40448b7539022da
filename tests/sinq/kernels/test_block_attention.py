"""Attention to blocks of keys: against loops in float64, and every kernel against the definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinq import Kernel, using
from sinq.algorithms.key_blocks import (
    block_index,
    block_sizes,
    block_starts,
    causal,
    causal_lengths,
    pairs,
    stretched,
)
from sinq.kernels.block_attention import attend_blocks, segment_softmax
from tests.sinq.kernels.attended import inputs

CPU = torch.device("cpu")
LENGTHS = st.integers(1, 70)


def by_loops(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Softmax attention of each query alone, float64; a key's block is the published rule's."""
    batch, heads, tokens, width = query.shape
    blocks, shared = kept.shape[3], heads // key.shape[1]
    out = torch.zeros(batch, heads, tokens, width, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                chosen = [j for j in range(t + 1) if kept[b, h, t, published_block(j, t + 1, blocks)]]
                if chosen:
                    k, v = key[b, h // shared, chosen].double(), value[b, h // shared, chosen].double()
                    out[b, h, t] = (k @ query[b, h, t].double() * scale).softmax(0) @ v
    return out


def published_block(key: int, length: int, blocks: int) -> int:
    return math.floor((key + 0.5) / length * blocks - 1e-4)


@pytest.mark.parametrize("kernel", [Kernel.reference, Kernel.cpu])
@pytest.mark.parametrize(("tokens", "blocks"), [(1, 4), (7, 16), (33, 8), (70, 4)])
def test_attention_is_that_of_loops(kernel: Kernel, tokens: int, blocks: int) -> None:
    given = inputs(tokens, blocks)
    with using(kernel):
        found = attend_blocks(*given)
    torch.testing.assert_close(found.double(), by_loops(*given), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", [Kernel.reference, Kernel.cpu])
def test_a_query_without_keys_gets_nothing_and_one_with_all_is_dense(kernel: Kernel) -> None:
    query, key, value, kept, scale = inputs(20, 8)
    with using(kernel):
        assert not attend_blocks(query, key, value, torch.zeros_like(kept), scale).any()
        found = attend_blocks(query, key, value, torch.ones_like(kept), scale)
    wide = [states.repeat_interleave(2, 1) for states in (key, value)]
    dense = torch.nn.functional.scaled_dot_product_attention(query, *wide, is_causal=True, scale=scale)
    torch.testing.assert_close(found, dense, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", [Kernel.reference, Kernel.cpu])
def test_large_scores_do_not_overflow(kernel: Kernel) -> None:
    query, key, value, kept, _ = inputs(30, 8)
    with using(kernel):
        assert attend_blocks(query, key, value, kept, 1e3).isfinite().all()


def test_a_text_is_attended_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(50, 8)
    whole = attend_blocks.definition(*given)
    monkeypatch.setattr("sinq.kernels.block_attention.PAIRS_AT_ONCE", 100)
    torch.testing.assert_close(attend_blocks.definition(*given), whole, rtol=0, atol=1e-6)


@given(length=st.integers(1, 1024), blocks=st.sampled_from([4, 64, 128, 256]))
@settings(max_examples=60, deadline=None)
def test_blocks_divide_the_keys_by_the_published_rule(length: int, blocks: int) -> None:
    starts = block_starts(torch.tensor([length]), blocks)[0].tolist()
    assert starts[0] == 0
    assert starts[-1] == length
    owner = [block for block in range(blocks) for _ in range(starts[block], starts[block + 1])]
    assert owner == [published_block(key, length, blocks) for key in range(length)]


@given(tokens=LENGTHS, blocks=st.sampled_from([4, 8, 64]), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_pairs_are_the_stretched_mask(tokens: int, blocks: int, seed: int) -> None:
    kept = torch.rand(3, tokens, blocks, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask = stretched(kept, block_index(tokens, blocks, CPU)) & causal(tokens, CPU)
    row, column = pairs(kept, range(tokens))
    found = torch.zeros(3 * tokens, tokens, dtype=torch.bool)
    found[row, column] = True
    assert torch.equal(found, mask.flatten(0, 1))
    assert len(row) == int(mask.sum())  # no pair twice
    assert bool((row.diff() >= 0).all())
    sizes = block_sizes(causal_lengths(tokens, CPU), blocks)
    assert int((kept * sizes).sum()) == len(row)


def test_a_segment_softmax_is_a_softmax_of_each_segment() -> None:
    scores, segment = torch.randn(9), torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3])
    found = segment_softmax(scores, segment, 4)
    for index in (0, 2, 3):
        torch.testing.assert_close(found[segment == index], scores[segment == index].softmax(0))
