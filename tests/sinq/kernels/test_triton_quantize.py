"""What the Triton kernels of quantizing compute, against the definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinq import Normalized, QuantizedTensor, kernels
from sinq.algorithms import sinkhorn
from sinq.algorithms.sinkhorn import Sinkhorn, imbalance, to_tiles
from sinq.formats import rounding
from sinq.formats.grid import Grid
from sinq.formats.packing import unpack
from sinq.kernels import Kernel
from sinq.kernels.quantize import round_scaled

pytest.importorskip("triton")

from sinq.kernels.triton import quantize

pytestmark = pytest.mark.interpreted  # see tests/interpreter.py

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BITS = (2, 3, 4, 5, 6, 8)


def uneven(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A matrix whose rows and columns differ in size by up to 20."""
    generator = torch.Generator().manual_seed(seed)
    row, col = (3 * torch.rand(n, generator=generator) for n in (rows, columns))
    return (torch.randn(rows, columns, generator=generator) * row.exp()[:, None] * col.exp()).to(
        DEVICE, dtype
    )


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("shape", "tile", "dtype"),
    [
        ((128, 64), (128, 64), torch.float32),
        ((128, 64), (64, 64), torch.bfloat16),
        ((64, 24), (64, 12), torch.float16),
        ((576, 32), (576, 32), torch.bfloat16),
    ],
)
def test_scales_are_the_references(shape: tuple[int, int], tile: tuple[int, int], dtype: torch.dtype) -> None:
    weight = uneven(*shape, dtype)
    assert_close(quantize.sinkhorn_scales(weight, tile, Sinkhorn()), sinkhorn.sinkhorn_scales(weight, tile))


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("relative_floors", [True, False])
def test_every_option_means_what_it_does_in_the_reference(early_stop: bool, relative_floors: bool) -> None:
    weight = uneven(32, 32)  # largest deviations are above 5, taken as they are or in units of the tile's
    options = Sinkhorn(7, 0.8, 1.7, -0.2, 2.0, 2e-3, 5.0, early_stop, relative_floors)
    assert_close(
        quantize.sinkhorn_scales(weight, (32, 16), options),
        sinkhorn.sinkhorn_scales(weight, (32, 16), options),
    )


def test_below_an_absolute_floor_scales_are_the_references_but_for_a_common_factor() -> None:
    # All deviations count as the floor there, so the last steps move everything alike.
    # Rounding then picks the best of equal states.
    weight, options = uneven(32, 16) * 1e-4, Sinkhorn(relative_floors=False)
    found, expected = (
        kernel(weight, (32, 16), options) for kernel in (quantize.sinkhorn_scales, sinkhorn.sinkhorn_scales)
    )
    assert_close(
        (found[0] / found[0][0], found[1] / found[1][:, :1]),
        (expected[0] / expected[0][0], expected[1] / expected[1][:, :1]),
    )


def test_a_tile_that_rises_stops_and_the_others_go_on() -> None:
    stopping = next(tile for tile in (uneven(16, 16, seed=k) for k in range(100)) if _stops_early(tile))
    weight = torch.cat([stopping, uneven(16, 16, seed=1000)], dim=1)
    found = quantize.sinkhorn_scales(weight, (16, 16), Sinkhorn())
    assert_close(found, sinkhorn.sinkhorn_scales(weight, (16, 16)))


def _stops_early(tile: Tensor) -> bool:
    scales = [
        sinkhorn.sinkhorn_scales(tile, (16, 16), Sinkhorn(early_stop=stop))[0] for stop in (True, False)
    ]
    return not torch.equal(*scales)


@pytest.mark.parametrize("offset", [10.0, 1000.0])
def test_a_common_offset_costs_no_digits(offset: float) -> None:
    weight = (
        torch.randn(256, 32, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 5, 32) + offset
    )
    options = Sinkhorn(iterations=4)
    exact = tuple(scale[0] for scale in sinkhorn._balance(weight.double()[None], options))
    row, col = quantize.sinkhorn_scales(weight.to(DEVICE), (256, 32), options)
    for found, expected in ((row[:, 0], exact[0]), (col[0], exact[1])):
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=0)


def test_many_blocks_of_rows_and_a_mean_that_jumps_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "BALANCE_ELEMENTS", 64)  # 4 rows of 16
    weight = uneven(128, 16)
    weight[:20] += 300
    options = Sinkhorn(iterations=3)
    assert_close(
        quantize.sinkhorn_scales(weight, (128, 16), options),
        sinkhorn.sinkhorn_scales(weight, (128, 16), options),
    )


def test_one_iteration_scores_the_weights_and_moves_nothing() -> None:
    for scale in quantize.sinkhorn_scales(uneven(16, 16), (16, 16), Sinkhorn(iterations=1)):
        assert (scale == 1).all()


@pytest.mark.parametrize("shape", [(1, 8), (8, 2), (1, 2)])
def test_smallest_tiles(shape: tuple[int, int]) -> None:
    # The columns of one row have no deviation: states differ by a common factor and are equally good.
    # Rounding then picks one.
    weight = uneven(*shape)
    found = quantize.sinkhorn_scales(weight, shape, Sinkhorn())
    expected = sinkhorn.sinkhorn_scales(weight, shape)
    torch.testing.assert_close(found[0] * found[1], expected[0] * expected[1], rtol=1e-5, atol=0)


def test_equal_weights_and_zeros_are_left_alone() -> None:
    weight = torch.cat([torch.zeros(16, 16), torch.full((16, 16), 0.25)], dim=1).to(DEVICE)
    for scale in quantize.sinkhorn_scales(weight, (16, 16), Sinkhorn()):
        assert scale.isfinite().all()
        assert (scale > 0).all()


@settings(max_examples=5, deadline=None, derandomize=True)
@given(rows=st.integers(3, 20), width=st.integers(3, 20), across=st.integers(1, 2), seed=st.integers(0, 999))
def test_the_imbalance_reached_is_the_references(rows: int, width: int, across: int, seed: int) -> None:
    weight, tile = uneven(rows, width * across, seed=seed), (rows, width)
    reached = [
        imbalance(to_tiles(rounding.divide(weight.double(), *(scale.double() for scale in scales)), tile))
        for scales in (
            quantize.sinkhorn_scales(weight, tile, Sinkhorn()),
            sinkhorn.sinkhorn_scales(weight, tile),
        )
    ]
    torch.testing.assert_close(*reached, rtol=1e-4, atol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "group"), [(37, 24), (9, 12)])  # 12: words that cross groups and rows
def test_rounding_is_the_references(bits: int, rows: int, group: int) -> None:
    weight, grid = uneven(rows, 2 * group, torch.bfloat16), Grid(bits, group)
    row, col = sinkhorn.sinkhorn_scales(weight, (rows, group))
    assert_same_rounding(weight, row, col, grid)


@pytest.mark.parametrize("with_row", [True, False])
@pytest.mark.parametrize("with_col", [True, False])
@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
def test_rounding_with_and_without_scales(with_row: bool, with_col: bool, auxiliary_bits: int) -> None:
    weight, grid = uneven(32, 32), Grid(4, 16, auxiliary_bits=auxiliary_bits, range_floor=0.5)
    row, col = sinkhorn.sinkhorn_scales(weight, (16, 16))
    assert_same_rounding(weight, row if with_row else None, col if with_col else None, grid)


def test_rounding_of_odd_groups() -> None:
    groups = torch.stack(
        [
            torch.zeros(16),
            torch.full((16,), -3.0),
            1e6 + torch.linspace(0, 1, 16),
            -1e6 - torch.linspace(0, 1, 16),
        ]
    )
    assert_same_rounding(
        torch.cat([groups, uneven(4, 16).cpu() * 1e-20], dim=1).to(DEVICE), None, None, Grid(4, 16)
    )


def assert_same_rounding(weight: Tensor, row: Tensor | None, col: Tensor | None, grid: Grid) -> None:
    """Compare scales to their last digit, zeros and codes exactly, but for ties: one code in 10⁴."""
    packed, scale, zero = quantize.round_scaled(weight, row, col, grid)
    expected, expected_scale, expected_zero = round_scaled.definition(weight, row, col, grid)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    assert expected_zero is not None
    assert torch.equal(zero, expected_zero)
    assert packed.shape == expected.shape
    shape = (weight.shape[0], weight.shape[1])
    difference = unpack(packed, grid.bits, shape).int() - unpack(expected, grid.bits, shape).int()
    assert difference.abs().max() <= 1
    assert difference.count_nonzero() <= difference.numel() // 10_000


def test_weights_that_are_views_or_of_another_type() -> None:
    weight, grid = uneven(32, 32), Grid(4, 16)
    plain = quantize.round_scaled(weight, None, None, grid)
    for same in (weight.T.contiguous().T, weight.double(), torch.nn.Parameter(weight)):
        assert all(
            torch.equal(one, other)
            for one, other in zip(quantize.round_scaled(same, None, None, grid), plain, strict=True)
        )


def test_the_choice_of_kernel_gets_here() -> None:
    weight, grid = uneven(16, 32), Grid(4, 16)
    with kernels.using(Kernel.triton):
        scales = kernels.sinkhorn_scales(weight, (16, 16))
        packed, scale, zero = Normalized(weight).rounded(grid)
        value = Normalized(weight).store(grid, packed, scale, zero)
    assert_close(scales, sinkhorn.sinkhorn_scales(weight, (16, 16)))
    assert torch.equal(value.dequantize(), QuantizedTensor.round(weight, grid).dequantize())
