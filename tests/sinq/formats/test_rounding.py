import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinq import Grid, Levels, QuantizedTensor, assign, choose
from sinq.formats.grid import BITS
from sinq.formats.rounding import centre, choose_within, level_table

GRIDS = [
    *(
        Grid(bits=b, group_size=16, symmetric=s, auxiliary_bits=32)
        for b, s in itertools.product(BITS, (False, True))
    ),
    *(Grid(bits=4, group_size=16, levels=Levels.nf4, symmetric=s, auxiliary_bits=32) for s in (False, True)),
    Grid(bits=3, group_size=16, levels=Levels.nf3, auxiliary_bits=32),
]


def identify(grid: Grid) -> str:
    return f"{grid.levels.name}{grid.bits}{'-symmetric' if grid.symmetric else ''}"


def gaussian(rows: int = 8, columns: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS, ids=identify)
def test_the_nearest_of_all_levels_is_taken(grid: Grid) -> None:
    weight = gaussian()
    scale, zero = choose(weight, grid)
    codes = assign(weight, scale, zero, grid)
    table = level_table(grid, weight.device)
    zeros = torch.full_like(scale, centre(grid)) if zero is None else zero
    values = (table - zeros[..., None]) * scale[..., None]  # (out, groups, levels)
    distances = (weight.reshape(8, 3, 16, 1) - values[:, :, None, :]).abs()
    chosen = distances.gather(-1, codes.reshape(8, 3, 16, 1).long())[..., 0]
    torch.testing.assert_close(chosen, distances.amin(-1), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(BITS),
    st.sampled_from([8, 16, 32]),
    st.floats(-50, 50),
    st.floats(1e-6, 1e3),
    st.integers(0, 999),
)
def test_no_weight_is_further_off_than_half_a_step(
    bits: int, auxiliary_bits: int, offset: float, size: float, seed: int
) -> None:
    weight = size * (gaussian(4, 32, seed) + offset)
    scale, zero = choose(weight, grid := Grid(bits=bits, group_size=16, auxiliary_bits=auxiliary_bits))
    assert zero is not None
    levels = assign(weight, scale, zero, grid).float().reshape(4, 2, 16)
    error = (levels - zero[..., None]) * scale[..., None] - weight.reshape(4, 2, 16)
    assert (error.abs() <= scale[..., None] * 0.5 + 2e-6 * weight.abs().max()).all()


@pytest.mark.parametrize("bits", BITS)
def test_symmetric_uses_all_its_levels(bits: int) -> None:
    quantized = QuantizedTensor.round(gaussian(256, 256), Grid(bits=bits, group_size=64, symmetric=True))
    assert quantized.codes().unique().numel() == 2**bits
    assert torch.isfinite(quantized.dequantize()).all()


def relative_error(weight: Tensor, grid: Grid) -> float:
    return ((QuantizedTensor.round(weight, grid).dequantize() - weight).norm() / weight.norm()).item()


def test_symmetric_is_not_handicapped() -> None:
    # On a Gaussian matrix, the release's symmetric grid has errors of
    # 0.125 (4 bits), 0.37 (3 bits) and NaN (2 bits).
    weight = gaussian(256, 256)
    assert relative_error(weight, Grid(bits=4, symmetric=True)) < 0.105
    assert relative_error(weight, Grid(bits=3, symmetric=True)) < 0.22
    assert relative_error(weight, Grid(bits=2, symmetric=True)) < 0.45


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("auxiliary_bits", [8, 16])
@pytest.mark.parametrize("value", [0.0, 0.37, -0.37, 1e-5])
def test_a_constant_group_is_kept(bits: int, auxiliary_bits: int, value: float) -> None:
    weight = gaussian()
    weight[2, 16:32] = value
    result = QuantizedTensor.round(
        weight, Grid(bits=bits, group_size=16, auxiliary_bits=auxiliary_bits)
    ).dequantize()
    torch.testing.assert_close(result[2, 16:32], weight[2, 16:32], rtol=0.01, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(BITS), st.booleans(), st.integers(0, 999))
def test_quantizing_what_is_on_the_grid_changes_nothing(bits: int, symmetric: bool, seed: int) -> None:
    grid = Grid(bits=bits, group_size=16, auxiliary_bits=32, symmetric=symmetric)
    weight = gaussian(4, 32, seed)
    if symmetric:  # the extreme must be the side that is not cut
        weight[:, ::16] = -weight.abs().amax(1, keepdim=True) - 0.5
    once = QuantizedTensor.round(weight, grid).dequantize()
    torch.testing.assert_close(QuantizedTensor.round(once, grid).dequantize(), once, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(BITS), st.booleans(), st.integers(0, 999), st.floats(-3, 3))
def test_scales_within_extremes_are_those_that_are_chosen(
    bits: int, symmetric: bool, seed: int, shift: float
) -> None:
    grid = Grid(bits, 16, symmetric=symmetric)
    weight = gaussian(seed=seed) + shift
    low, high = weight.reshape(8, 3, 16).aminmax(dim=-1)
    found, expected = choose_within(low, high, grid, 2**bits - 1), choose(weight, grid)
    assert torch.equal(found[0], expected[0])
    assert (found[1] is None) == symmetric
    assert symmetric or torch.equal(found[1], expected[1])  # type: ignore[arg-type]


def test_a_range_of_fewer_codes_reaches_from_end_to_end() -> None:
    low, high = torch.tensor([[-1.0]]), torch.tensor([[3.0]])
    scale, zero = choose_within(low, high, Grid(3, 16), 4)
    assert (scale.item(), zero.item()) == (1.0, 1.0)  # type: ignore[union-attr]


def test_scales_can_be_differentiated_by_their_range() -> None:
    low, high = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)
    choose_within(low, high, Grid(2, 16), 3)[0].backward()
    assert (low.grad.item(), high.grad.item()) == pytest.approx((-1 / 3, 1 / 3))  # type: ignore[union-attr]


def test_a_group_size_that_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError, match="group_size=64 does not divide a matrix of 8×48"):
        choose(gaussian(), Grid(group_size=64))


def test_half_precision_weights_are_rounded_in_float32() -> None:
    half = gaussian().to(torch.bfloat16)
    grid = Grid(group_size=16)
    assert torch.equal(
        QuantizedTensor.round(half, grid).dequantize(), QuantizedTensor.round(half.float(), grid).dequantize()
    )


def test_the_official_floor_is_an_option() -> None:
    scale, _ = choose(1e-7 * gaussian(), Grid(bits=4, group_size=16, range_floor=1e-4))
    torch.testing.assert_close(scale, torch.full_like(scale, 1e-4 / 15))
