"""The error of rounding, by kernels that store no codes, against a stored matrix that is read back."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.hqq import HQQ
from baselines.rtn import RTN
from sinq import SINQ, Grid, HalfQuadratic, Kernel, Levels, Normalized, ScalarMethod, SINQRefined, using
from sinq.formats.grid import BITS
from sinq.formats.rounding import by_group, cut, divide
from sinq.kernels import rounding_error

Scales = tuple[Tensor | None, Tensor | None]


def matrix(rows: int, columns: int, size: float = 0.02, seed: int = 0) -> Tensor:
    return size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def scales(rows: int, columns: int, grid: Grid) -> tuple[Tensor, Tensor]:
    generator, tiles = torch.Generator().manual_seed(7), rows // grid.tile((rows, columns))[0]
    return torch.rand(rows, columns // grid.group_size, generator=generator) + 0.5, torch.rand(
        tiles, columns, generator=generator
    ) + 0.5


def largest(weight: Tensor, found: Scales, grid: Grid) -> Tensor:
    return by_group(divide(weight, *found).abs(), grid.group_size).amax(-1)


def compare(weight: Tensor, found: Scales, grid: Grid, limit: Tensor | None = None) -> None:
    """Compare all weights but one in a thousand: a weight halfway between two codes may go to either."""
    tried = weight if limit is None else cut(weight, *found, limit)
    with using(Kernel.reference):
        normalized = Normalized(tried, *found)
        expected = weight - normalized.store(grid, *normalized.rounded(grid)).dequantize()
    with using(Kernel.cpu):
        ours = rounding_error(weight, *found, grid, limit)
    same = torch.isclose(ours, expected, rtol=1e-4, atol=1e-6 * weight.abs().max().item())
    assert (~same).sum() <= max(2, weight.numel() / 1000)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(96, 128, 64), (7, 24, 12), (1, 64, 64), (40, 160, 160), (33, 10, 2)]
)
def test_errors_are_those_of_what_is_stored(
    rows: int, columns: int, group_size: int, auxiliary_bits: int, bits: int
) -> None:
    grid, weight = Grid(bits, group_size, auxiliary_bits=auxiliary_bits), matrix(rows, columns)
    row, col = scales(rows, columns, grid)
    for found in ((None, None), (None, col), (row, None), (row, col)):
        compare(weight, found, grid)
        compare(weight, found, grid, 0.6 * largest(weight, found, grid))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from(BITS),
    tiling=st.sampled_from([1, 2]),
    size=st.sampled_from([1e-6, 1e-3, 0.3, 10.0]),
    share=st.floats(0.3, 1.0),
    offset=st.sampled_from([0.0, 0.5, -20.0]),
)
def test_errors_of_any_matrix(
    seed: int, bits: int, tiling: int, size: float, share: float, offset: float
) -> None:
    grid, weight = Grid(bits, 16, tiling), matrix(32, 48, size, seed) + offset * size
    found = scales(32, 48, grid)
    compare(weight, found, grid)
    compare(weight, found, grid, share * largest(weight, found, grid))


def test_groups_of_zeros_lose_nothing_and_change_no_other() -> None:
    weight, grid = matrix(8, 64), Grid(3, 16)
    plain = rounding_error(weight, None, None, grid)
    weight[2, 16:32], plain[2, 16:32] = 0, 0
    compare(weight, (None, None), grid)
    assert torch.equal(rounding_error(weight, None, None, grid), plain)


@pytest.mark.parametrize(
    "grid", [Grid(4, 16, levels=Levels.nf4), Grid(3, 16, symmetric=True), Grid(4, 16, range_floor=0.1)]
)
def test_grids_without_a_kernel_and_floors_follow_the_definition(grid: Grid) -> None:
    compare(matrix(16, 64), scales(16, 64, grid), grid)


def test_the_weight_is_not_written_to() -> None:
    weight = matrix(16, 64)
    before = weight.clone()
    rounding_error(weight, None, None, Grid(4, 16), torch.full((16, 4), 0.01))
    assert torch.equal(weight, before)


def test_a_limit_cuts_the_matrix_at_it() -> None:
    grid, weight = Grid(4, 16), matrix(16, 64)
    found = scales(16, 64, grid)
    limit = 0.5 * largest(weight, found, grid)
    result, bound = divide(cut(weight, *found, limit), *found), limit.repeat_interleave(16, 1)
    torch.testing.assert_close(
        result,
        divide(weight, *found).double().clamp(-bound.double(), bound.double()).float(),
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    "method",
    [
        RTN(Grid(3, 16)),
        RTN(Grid(4, 16, levels=Levels.nf4)),
        SINQ(Grid(3, 16)),
        SINQ(Grid(3, 16), refinement=HalfQuadratic()),
        SINQ(Grid(3, 16), refinement=HalfQuadratic(), kurtosis_gate=0.1),
        SINQRefined(Grid(3, 16)),
        HQQ(Grid(3, 16)),
    ],
)
def test_every_method_knows_the_error_of_what_it_rounds(method: ScalarMethod) -> None:
    """`only_rounds` must not promise what `round` does not do."""
    weight = matrix(32, 64)
    normalized = method.normalize(weight).scaled_by(torch.linspace(0.5, 2, 64))
    limit = 0.7 * by_group(normalized.matrix.abs(), 16).amax(-1)
    for found, tried in (
        (method.error(normalized), normalized),
        (method.error(normalized, limit), normalized.cut_at(limit)),
    ):
        expected = weight - method.round(replace(tried)).dequantize()
        assert (~torch.isclose(found, expected, rtol=1e-4, atol=1e-7)).sum() <= 4  # ties
