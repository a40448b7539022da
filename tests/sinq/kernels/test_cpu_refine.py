"""The kernels of HQQ's refinement and of refined SINQ against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinq import Grid, HalfQuadratic, Kernel, SINQRefined, using
from sinq.algorithms.half_quadratic import shrink
from sinq.algorithms.solved_scales import Solved
from sinq.formats.packing import unpack
from sinq.kernels import column_magnitudes, refine_scaled, round_solved
from sinq.kernels.cpu.refine import EXPONENTS, power, unshrunk

PACKAGE = HalfQuadratic(early_stop=True, reround=True)
SHAPES = [(96, 128, 32), (7, 24, 12), (13, 36, 12), (1, 64, 64), (40, 160, 160)]


def matrix(rows: int, columns: int, size: float, seed: int = 0) -> Tensor:
    return size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def scales(rows: int, columns: int, group_size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(rows, columns // group_size, generator=generator) + 0.5, torch.rand(
        1, columns, generator=generator
    ) + 0.5


def both(function, *arguments) -> tuple:  # type: ignore[no-untyped-def]
    with using(Kernel.reference):
        expected = function(*arguments)
    with using(Kernel.cpu):
        return function(*arguments), expected


def compare(found: tuple, expected: tuple, shape: tuple[int, int], bits: int, tolerance: float) -> None:
    """Compare all groups but two, or one in fifty, which may be ties.

    A weight between two codes may go to either; so may the step, where two have the same error.
    """
    codes, wanted = (unpack(result[0], bits, shape) for result in (found, expected))
    groups = expected[1].numel()
    same = (codes == wanted).reshape(groups, -1).all(1)
    for one, other in zip(found[1:], expected[1:], strict=True):
        same &= torch.isclose(one, other, rtol=tolerance, atol=tolerance).reshape(-1)
    assert (~same).sum() <= max(2, groups / 50)


@pytest.mark.parametrize(
    "options",
    [PACKAGE, HalfQuadratic(), HalfQuadratic(beta=3.0, growth=1.3, norm=0.5), HalfQuadratic(norm=1.0)],
)
@pytest.mark.parametrize("size", [0.02, 1.0])
@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
def test_refinement_is_the_defined_one(
    rows: int, columns: int, group_size: int, size: float, options: HalfQuadratic
) -> None:
    grid, weight = Grid(3, group_size), matrix(rows, columns, size)
    for row_scale, col_scale in ((None, None), scales(rows, columns, group_size)):
        found, expected = both(refine_scaled, weight, row_scale, col_scale, grid, options, True)
        compare(found, expected, (rows, columns), 3, 1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([2, 3, 4, 8]),
    tiling=st.sampled_from([1, 2]),
    size=st.sampled_from([1e-3, 0.3, 10.0]),
    round_zero=st.booleans(),
)
def test_refinement_of_any_matrix(seed: int, bits: int, tiling: int, size: float, round_zero: bool) -> None:
    grid, weight = Grid(bits, 16, tiling), matrix(32, 48, size, seed)
    found, expected = both(refine_scaled, weight, None, None, grid, HalfQuadratic(reround=True), round_zero)
    compare(found, expected, (32, 48), bits, 1e-4)


@pytest.mark.parametrize("function", ["refine", "solved"])
def test_odd_groups(function: str) -> None:
    weight = torch.cat(
        [
            torch.zeros(1, 32),
            torch.full((1, 32), 0.3),
            1000 + torch.arange(32)[None] / 3200,
            1e-23 * matrix(1, 32, 1.0),
        ]
    )
    weight = torch.cat([weight, matrix(5, 32, 1.0)])
    grid = Grid(4, 32)
    if function == "refine":
        found, expected = both(refine_scaled, weight, None, None, grid, HalfQuadratic(steps=3))
    else:
        found, expected = both(round_solved, weight, None, None, grid, Solved(2, 2.0, 0.9))
    results = [((unpack(packed, 4, (9, 32)) - zero) * scale) for packed, scale, zero in (found, expected)]
    assert results[0].isfinite().all()
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
def test_solved_rounding_is_the_defined_one(rows: int, columns: int, group_size: int, bits: int) -> None:
    grid, weight = Grid(bits, group_size), matrix(rows, columns, 0.05)
    for row_scale, col_scale in ((None, None), scales(rows, columns, group_size)):
        found, expected = both(round_solved, weight, row_scale, col_scale, grid, Solved(2, 2.0, 0.9))
        compare(found, expected, (rows, columns), bits, 1e-4)


@pytest.mark.parametrize("tiling", [1, 2])
def test_column_magnitudes_are_the_defined_ones(tiling: int) -> None:
    weight = matrix(96, 64, 0.05) * torch.linspace(0.1, 3, 64)
    weight[:, 5], weight[3] = 0, 0
    found, expected = both(
        column_magnitudes, weight, Grid(group_size=32, tiling=tiling).tile((96, 64)), 1.0, 3
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("option", [{"norm": 2.0}, {"norm": 1.0}])
def test_refined_sinq_is_the_defined_one(option: dict) -> None:
    weight, method = matrix(64, 96, 0.05), SINQRefined(Grid(3, 32, tiling=2), **option)
    found, expected = both(method.quantize, weight)
    assert (found.codes() == expected.codes()).float().mean() > 0.999


@pytest.mark.parametrize("exponent", [-0.3, -0.9, 0.0])
def test_powers_are_good_to_float32(exponent: float) -> None:
    powers, polynomial = power(exponent)
    mantissa, exponents = np.linspace(1, 2, 1001, endpoint=False), np.arange(-EXPONENTS, EXPONENTS + 1)
    found = np.polynomial.Polynomial(polynomial)(mantissa - 1.5)[:, None] * powers
    np.testing.assert_allclose(found, (mantissa[:, None] * 2.0**exponents) ** exponent, rtol=1e-6)


@pytest.mark.parametrize(("norm", "beta"), [(0.7, 10.0), (1.0, 2.0), (0.3, 1e3)])
def test_below_the_threshold_everything_shrinks_to_zero(norm: float, beta: float) -> None:
    limit = unshrunk(norm, beta)
    assert shrink(torch.tensor([limit, -limit]), norm, beta).abs().max() == 0
    assert shrink(torch.tensor([1.001 * limit]), norm, beta) > 0
