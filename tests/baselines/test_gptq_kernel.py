"""GPTQ's kernel against its own loop: the same operations in the same order, so the same codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.gptq import GPTQ, ActOrder, cpu
from baselines.rtn import RTN
from sinq import Grid, Kernel, Levels, QuantizedTensor, using
from sinq.calibration.statistics import Hessian
from sinq.kernels.cpu.quantize import range_limits
from tests.baselines.inputs import correlated, seen

SHAPES = [(96, 128, 32, 64), (7, 24, 12, 128), (33, 72, 12, 25), (1, 64, 64, 1)]


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def both(method: GPTQ, weight: Tensor, hessian: Hessian) -> tuple[QuantizedTensor, QuantizedTensor]:
    with using(Kernel.reference):
        expected = method.quantize(weight, hessian)
    with using(Kernel.cpu):
        return method.quantize(weight, hessian), expected


def assert_same(found: QuantizedTensor, expected: QuantizedTensor) -> None:
    assert torch.equal(found.codes(), expected.codes())
    assert torch.equal(found.scale(), expected.scale())
    assert torch.equal(torch.as_tensor(found.zero()), torch.as_tensor(expected.zero()))
    assert found.notes == expected.notes


@pytest.mark.parametrize("order", ActOrder)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("rows", "columns", "group_size", "block"),
    [(96, 128, 32, 64), (7, 24, 12, 128), (33, 72, 12, 25), (1, 64, 64, 1)],
)
def test_codes_scales_and_zeros_are_those_of_the_loop(
    rows: int, columns: int, group_size: int, block: int, bits: int, order: ActOrder
) -> None:
    method = GPTQ(RTN(Grid(bits, group_size)), block=block, act_order=order)
    assert_same(*both(method, matrix(rows, columns), seen(correlated(200, columns))))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 40),
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    auxiliary_bits=st.sampled_from([8, 16, 32]),
    order=st.sampled_from(list(ActOrder)),
    dead=st.sets(st.integers(0, 47), max_size=6),
    size=st.sampled_from([1e-3, 1.0, 50.0]),
    keep=st.booleans(),
)
def test_any_matrix(
    seed: int,
    rows: int,
    bits: int,
    auxiliary_bits: int,
    order: ActOrder,
    dead: set[int],
    size: float,
    keep: bool,
) -> None:
    inputs = correlated(100, 48, seed)
    inputs[:, sorted(dead)] = 0
    method = GPTQ(RTN(Grid(bits, 16, auxiliary_bits=auxiliary_bits)), act_order=order, keep_better_rows=keep)
    assert_same(*both(method, size * matrix(rows, 48, seed), seen(inputs)))


@pytest.mark.parametrize("order", ActOrder)
def test_odd_groups(order: ActOrder) -> None:
    """Zeros, a constant, far from 0, tiny, and only zeros in a group of every row."""
    rows = [
        torch.zeros(1, 32),
        torch.full((1, 32), 0.3),
        1000 + torch.arange(32)[None] / 3200,
        1e-20 * matrix(1, 32),
        matrix(4, 32),
    ]
    weight = torch.cat([torch.cat(rows), torch.zeros(8, 16)], dim=1)
    found, expected = both(
        GPTQ(RTN(Grid(4, 16, auxiliary_bits=32)), act_order=order), weight, seen(correlated(200, 48))
    )
    assert_same(found, expected)
    assert torch.equal(found.dequantize()[0], torch.zeros(48))
    assert (found.scale() > 0).all()


def test_the_kernel_changes_neither_weights_nor_hessian() -> None:
    weight, hessian = matrix(20, 64), seen(correlated())
    before, sums = weight.clone(), hessian.matrix().clone()
    both(GPTQ(RTN(Grid(4, 16))), weight, hessian)
    assert torch.equal(weight, before)
    assert torch.equal(hessian.matrix(), sums)


def test_it_runs_where_it_can_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    compiled = cpu._round_block
    monkeypatch.setattr(cpu, "_round_block", lambda *arguments: ran.append(1) or compiled(*arguments))
    for grid, blocks in (
        (Grid(4, 16), 1),
        (Grid(4, 16, symmetric=True), 0),
        (Grid(4, 16, levels=Levels.nf4), 0),
    ):
        ran.clear()
        both(GPTQ(RTN(grid)), matrix(20, 64), seen(correlated()))
        assert len(ran) == blocks


def test_zeros_stay_within_what_is_stored() -> None:
    """The limits the kernel is given hold for its groups too: one far from 0 gets a wider range."""
    grid = Grid(4, 16, auxiliary_bits=8)
    _, smallest, largest = range_limits(grid)
    zero = both(GPTQ(RTN(grid)), 5 + matrix(20, 64), seen(correlated()))[0].zero()
    assert isinstance(zero, Tensor)
    assert zero.min() == smallest
    assert zero.max() <= largest
