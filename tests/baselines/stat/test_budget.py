"""Budgets against a search over all of them, and their bounds."""

import itertools
import re

import pytest
import torch

from baselines.stat.budget import Allocation, Budget, Depth, Limits, Scores, allocate
from sinq import NotApplicable

THRESHOLD, UNIFORM = Allocation


def scores(*blocks: list[float]) -> Scores:
    values = tuple(torch.tensor(block, dtype=torch.float64) for block in blocks)
    errors = tuple(
        torch.cat([each.square().flip(0).cumsum(0).flip(0).sqrt(), each.new_zeros(1)]) for each in values
    )
    return Scores(values, errors)


HEADS = scores([9, 5, 2], [8, 7, 6])
NEURONS = scores([5, 4, 3, 2, 1, 0.5], [9, 8, 7, 6, 0.2, 0.1])


def best(limits: Limits) -> Budget:
    """The budget by the definition: keep what is above a threshold of each kind, try every total."""
    found = []
    for number, total in itertools.product(range(2, 7), range(2, 13)):
        step = 2 if limits.whole_heads else 1
        if number % step or number < int(limits.target * 6 / step) * step:
            continue
        wanted = limits.target * (6 * limits.head + 12 * limits.neuron) - number * limits.head
        if total != round(wanted / limits.neuron):
            continue
        heads, neurons = (
            sorted(((v.item(), block) for block, each in enumerate(kind.values) for v in each), reverse=True)
            for kind in (HEADS, NEURONS)
        )
        kept = [
            [sum(block == b for _, block in kind[:n]) for b in (0, 1)]
            for kind, n in ((heads, number), (neurons, total))
        ]
        cut = heads[number][0] if number < 6 else 0.0
        mean = sum(NEURONS.errors[b][kept[1][b]].item() for b in (0, 1)) / 2
        found.append((abs(cut - 2 * mean), Budget(tuple(kept[0]), tuple(kept[1]))))
    return min(found, key=lambda each: each[0])[1]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("target", [0.6, 0.7, 0.8, 0.9, 1.0])
def test_it_is_the_balanced_budget_among_all(target: float, whole: bool) -> None:
    limits = Limits(head=2.0, neuron=1.0, target=target, whole_heads=whole)
    assert allocate(HEADS, NEURONS, limits, THRESHOLD) == best(limits)


def test_blocks_with_larger_scores_keep_more_and_uniform_ones_the_same() -> None:
    limits = Limits(head=1.0, neuron=1.0, target=0.7, whole_heads=False)
    other = allocate(HEADS, NEURONS, limits, THRESHOLD)
    assert other.heads[1] > other.heads[0]
    same = allocate(HEADS, NEURONS, limits, UNIFORM)
    assert len({*same.neurons}) == len({*same.heads}) == 1
    assert sum(other.heads) + sum(other.neurons) == 13
    assert sum(same.heads) + sum(same.neurons) in (12, 14)


def test_every_block_keeps_a_head_and_a_chunk() -> None:
    heads, neurons = scores([1e-9, 1e-9], [5, 5]), scores([1e-9] * 8, [5] * 8)
    found = allocate(heads, neurons, Limits(1.0, 1.0, 0.5, chunk=4), THRESHOLD)
    assert found == Budget((1, 1), (4, 4))


def test_neurons_come_in_chunks() -> None:
    found = allocate(HEADS, NEURONS, Limits(0.1, 1.0, 0.75, chunk=3), THRESHOLD)
    assert all(each % 3 == 0 for each in found.neurons)


@pytest.mark.parametrize("target", [0.05, 0.2])
def test_a_target_that_leaves_a_block_without_units_is_refused(target: float) -> None:
    message = re.escape(
        f"method.target={target:g} cannot be met by some of 6 heads and 12 neurons in 2 blocks"
    )
    with pytest.raises(NotApplicable, match=message):
        allocate(HEADS, NEURONS, Limits(2.0, 1.0, target, chunk=3), THRESHOLD)


def test_weights_by_depth() -> None:
    grown = scores([2, 1], [4, 1], [8, 1])
    fitted = grown.weighted(Depth.fitted)
    assert [each[0].item() for each in fitted.values] == pytest.approx([1, 1, 1])
    assert [each[-2].item() for each in fitted.errors] == pytest.approx([0.5, 0.25, 0.125])
    heads = grown.weighted(Depth.fitted, 1.5)
    assert heads.values[1].tolist() == pytest.approx([1.5**2, 0.25 * 1.5])
    linear = grown.weighted(Depth.linear, 1.5)
    assert [each[1].item() for each in linear.values] == pytest.approx([3, 3**0.5 + 1, 2**0.5 + 1])
    assert torch.equal(torch.stack(grown.weighted(Depth.none, 1.5).values), torch.stack(grown.values))


def test_a_block_whose_scores_are_zero_has_a_weight() -> None:
    assert all(each.isfinite().all() for each in scores([0, 0], [1, 1]).weighted(Depth.fitted).values)
