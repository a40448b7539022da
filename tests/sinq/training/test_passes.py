"""The loop of training: against gradient descent written out, and the order of windows."""

import pytest
import torch
from torch import Tensor

from sinq.training.passes import passes

TARGETS = (1.0, -2.0, 4.0, 0.5, 3.0)


def test_steps_are_those_of_gradient_descent_on_the_mean_of_each_batch() -> None:
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in passes(torch.optim.SGD([x], 0.1), lambda k: (x - TARGETS[k]) ** 2, range(5), 3, batch=2):
        pass
    expected = 0.0
    for _ in range(3):
        for batch in ((0, 1), (2, 3), (4,)):
            expected -= 0.1 * sum(2 * (expected - TARGETS[k]) for k in batch) / len(batch)
    assert x.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", [None, 3])
def test_every_epoch_sees_every_window_once(seed: int | None) -> None:
    x, seen = torch.zeros((), requires_grad=True), []

    def loss(window: int) -> Tensor:
        seen.append(window)
        return x * window

    generator = None if seed is None else torch.Generator().manual_seed(seed)
    epochs = [list(seen[-4:]) for _ in passes(torch.optim.SGD([x], 0.1), loss, range(3, 7), 5, 3, generator)]
    assert [sorted(epoch) for epoch in epochs] == [[3, 4, 5, 6]] * 5
    assert len({tuple(epoch) for epoch in epochs}) == (1 if seed is None else len(set(map(tuple, epochs))))
    assert (epochs[0] == [3, 4, 5, 6]) == (seed is None)


def test_it_trains_although_gradients_are_off_around_it() -> None:
    x = torch.ones((), requires_grad=True)
    with torch.no_grad():
        assert list(passes(torch.optim.SGD([x], 0.1), lambda _: x**2, [0], 2, 1)) == [1, 2]
    assert x.item() == pytest.approx(0.64)
