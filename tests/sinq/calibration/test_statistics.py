"""Statistics and the stream that feeds them: against formulas over all inputs at once; bounded memory."""

import tracemalloc

import pytest
import torch
from torch import Tensor

from sinq.calibration.statistics import Gradient, Hessian, Inputs, InputStatistic, SquaredGradient, Statistic
from sinq.model.blocks import HiddenStates

CPU = torch.device("cpu")


def batches(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 50, 8, generator=generator) for _ in range(count)]


def fed(kind: type[InputStatistic], inputs: list[Tensor]) -> InputStatistic:
    statistic = kind(8, CPU)
    for batch in inputs:
        statistic.update(batch)
    return statistic


def test_a_hessian_is_that_of_all_inputs_at_once() -> None:
    x = torch.cat(batches()).reshape(-1, 8).double()
    hessian = fed(Hessian, batches())
    assert hessian.tokens == 600
    torch.testing.assert_close(hessian.matrix(), x.T @ x / 600, rtol=1e-5, atol=1e-7)


def test_inputs_are_averaged_all_and_sampled_evenly() -> None:
    inputs = batches(20)
    x, statistic = torch.cat(inputs).reshape(-1, 8), fed(Inputs, inputs)
    assert isinstance(statistic, Inputs)
    torch.testing.assert_close(statistic.mean_magnitude(), x.abs().mean(0))
    positions = torch.tensor([(x == row).all(1).nonzero().item() for row in statistic.sample()])
    assert len(positions.unique()) == Inputs.ROWS
    assert positions.equal(positions.sort().values)
    first_half = (positions < len(x) / 2).float().mean().item()
    assert 0.4 < first_half < 0.6


@pytest.mark.parametrize("kind", [Hessian, Inputs])
def test_what_is_kept_restores_it(kind: type[InputStatistic]) -> None:
    statistic = fed(kind, batches())
    restored = kind(8, CPU).load(statistic.tensors())
    assert restored.tokens == statistic.tokens
    for name, tensor in statistic.tensors().items():
        assert torch.equal(restored.tensors()[name], tensor)


@pytest.mark.parametrize("kind", [Hessian, Inputs])
def test_transformed_is_the_statistic_of_transformed_inputs(kind: type[InputStatistic]) -> None:
    matrix = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    inputs = batches(3)  # few enough to be in the sample whole
    ours, expected = fed(kind, inputs).transformed(matrix), fed(kind, [batch @ matrix.T for batch in inputs])
    assert ours.tokens == expected.tokens
    if isinstance(ours, Hessian) and isinstance(expected, Hessian):
        torch.testing.assert_close(ours.matrix(), expected.matrix(), rtol=1e-5, atol=1e-6)
    elif isinstance(ours, Inputs) and isinstance(expected, Inputs):
        torch.testing.assert_close(ours.mean_magnitude(), expected.mean_magnitude())
        torch.testing.assert_close(ours.sample(), expected.sample())


@pytest.mark.parametrize("kind", [Gradient, SquaredGradient])
@pytest.mark.parametrize("windows", [1, 2, 3])
def test_gradients_are_restored_whole_and_by_rows(kind: type[Gradient], windows: int) -> None:
    statistic = kind.for_layer((6, 8), CPU)
    for batch in batches(windows):
        statistic.update(batch[0, :6].half(), tokens=7)
    again = kind((6, 8), CPU).load(statistic.tensors())
    assert again.tokens == statistic.tokens == 7 * windows
    assert torch.equal(again.total(), statistic.total())
    assert (again.halves() is None) == (windows == 1)
    part = statistic.of_rows(2, 3)
    assert torch.equal(part.total(), statistic.total()[2:5])
    for half, whole in zip(part.halves() or (), statistic.halves() or (), strict=True):
        assert torch.equal(half, whole[2:5])


@pytest.mark.parametrize("kind", [Hessian, Inputs, Gradient, SquaredGradient])
def test_noise_is_for_a_layer_and_always_the_same(kind: type[Statistic]) -> None:
    one, two = (kind.of_noise((6, 8), CPU) for _ in range(2))
    assert one.tokens > 0
    assert one.tensors().keys() == kind.for_layer((6, 8), CPU).tensors().keys()
    assert all(torch.equal(tensor, two.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hidden_states_come_back_as_they_were(dtype: torch.dtype) -> None:
    hidden = HiddenStates()
    states = [torch.randn(1, 5, 8).to(dtype) for _ in range(4)]
    for one in states:
        hidden.append(one)
    assert all(
        torch.equal(back, one) and back.dtype == dtype for back, one in zip(hidden, states, strict=True)
    )
    assert all(
        torch.equal(back, one * 2)
        for back, one in zip(hidden.through(lambda one, _: one * 2), states, strict=True)
    )


def test_hidden_states_are_not_in_memory() -> None:
    hidden, megabyte = HiddenStates(), torch.zeros(1 << 18)
    tracemalloc.start()  # sees the bytes read back; a torch tensor would be a view of them
    for _ in range(64):
        hidden.append(megabyte)
    for states in hidden.through(lambda one, _: one):
        assert states.shape == megabyte.shape
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
