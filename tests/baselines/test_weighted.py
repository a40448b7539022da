"""Weighted rounding: against a search over a fine mesh, never worse than its inner method, and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.gptq import GPTQ, ActOrder
from baselines.hqq import HQQ
from baselines.rtn import RTN
from baselines.weighted import Weighted
from sinq import SINQ, Calibration, Grid, Levels, NotApplicable, ScalarMethod, SINQRefined
from sinq.calibration.pairs import pair
from sinq.calibration.statistics import Hessian, MeanSquares
from tests.baselines.inputs import correlated, seen, weighted_error
from tests.conftest import tiny_model, tiny_tokens

GRID = Grid(3, 16, auxiliary_bits=32)
INNER = [RTN(GRID), HQQ(GRID), SINQ(GRID), SINQRefined(GRID), SINQ(Grid(3, 16, 2, auxiliary_bits=32))]
NAMES = ["rtn", "hqq", "sinq", "refined", "sinq_2d"]


def squares(inputs: Tensor) -> MeanSquares:
    statistic = MeanSquares(inputs.shape[1], inputs.device)
    statistic.update(inputs)
    return statistic


def uneven(tokens: int = 300, width: int = 64, seed: int = 0) -> Tensor:
    """Inputs whose channels differ in size by factors of up to a hundred."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, width, generator=generator)
        * torch.logspace(-1, 1, width)[torch.randperm(width, generator=generator)]
    )


def diagonal_error(weight: Tensor, result: Tensor, inputs: Tensor) -> float:
    return ((weight - result).double().square() * squares(inputs).mean()).sum().item()


def matrix(rows: int = 32, columns: int = 64, seed: int = 0) -> Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_mean_squares_are_the_diagonal_of_the_hessian() -> None:
    inputs = correlated(50)
    torch.testing.assert_close(squares(inputs).mean(), seen(inputs).matrix().diagonal().float())
    read = MeanSquares(64, inputs.device).load(squares(inputs).tensors())
    assert torch.equal(read.mean(), squares(inputs).mean())


@pytest.mark.parametrize("inner", INNER, ids=NAMES)
def test_it_is_never_worse_than_the_inner_method_and_mostly_better(inner: ScalarMethod) -> None:
    for seed in range(3):
        weight, inputs = matrix(seed=seed), uneven(seed=seed)
        ours = Weighted(inner).quantize(weight, squares(inputs))
        plain = inner.quantize(weight)
        errors = [diagonal_error(weight, each.dequantize(), inputs) for each in (ours, plain)]
        assert errors[0] < 0.9 * errors[1]
        assert ours.nbytes == plain.nbytes


def test_it_is_near_the_best_of_a_fine_mesh_of_scales_and_zeros() -> None:
    """One group of eight weights, against 200 × 200 scales and zeros around those of its range."""
    weight, inputs = matrix(1, 8), uneven(300, 8)
    grid = Grid(2, 8, auxiliary_bits=32)
    result = Weighted(RTN(grid), 64).quantize(weight, squares(inputs)).dequantize()
    width = (weight.amax() - weight.amin()).item()
    scales = torch.linspace(0.1, 0.5, 200)[:, None, None] * width
    zeros = torch.linspace(-2, 5, 200)[None, :, None]
    codes = (weight[0] / scales + zeros).round().clamp(0, 3)
    found = ((weight[0] - (codes - zeros) * scales).double().square() * squares(inputs).mean()).sum(-1)
    assert diagonal_error(weight, result, inputs) <= 1.05 * found.min().item()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), power=st.integers(-10, 10), bits=st.sampled_from([2, 3, 4]))
def test_the_unit_of_the_inputs_does_not_matter(seed: int, power: int, bits: int) -> None:
    method, inputs = Weighted(SINQ(Grid(bits, 16))), uneven(seed=seed)
    one, other = (method.quantize(matrix(), squares(x)).codes() for x in (inputs, inputs * 2.0**power))
    assert torch.equal(one, other)


def test_inputs_that_are_never_active_count_alike() -> None:
    method = Weighted(RTN(GRID))
    none, alike = (
        method.quantize(matrix(), squares(x)).codes() for x in (torch.zeros(4, 64), torch.ones(4, 64))
    )
    assert torch.equal(none, alike)


def test_feedback_goes_around_it() -> None:
    weight, inputs = matrix(), correlated(400) * torch.logspace(-1, 1, 64)
    both = pair(Hessian, MeanSquares)(64, torch.device("cpu"))
    both.update(inputs)
    method = GPTQ(Weighted(SINQ(GRID)), act_order=ActOrder.full)
    assert method.statistic is type(both)
    ours = method.quantize(weight, both).dequantize()
    plain = Weighted(SINQ(GRID)).quantize(weight, squares(inputs)).dequantize()
    hessian = seen(inputs)
    assert weighted_error(weight, ours, hessian) < 0.7 * weighted_error(weight, plain, hessian)


def test_a_model_is_compressed_in_one_pass() -> None:
    report = Weighted(SINQ(Grid(3, 32))).compress(tiny_model("llama"), Calibration(tiny_tokens(3)))
    assert 0 < report.relative_error_mean < 0.5


@pytest.mark.parametrize(
    "grid", [Grid(3, 16, symmetric=True), Grid(3, 16, auxiliary_bits=8), Grid(4, 16, levels=Levels.nf4)]
)
def test_grids_without_fractional_zeros_are_refused(grid: Grid) -> None:
    with pytest.raises(NotApplicable, match="fractional zero-points"):
        Weighted(RTN(grid))


def test_methods_that_are_not_scalar_are_refused() -> None:
    with pytest.raises(NotApplicable, match=r"method\.inner=GPTQ is not possible"):
        Weighted(GPTQ(RTN(GRID)))  # type: ignore[arg-type]
