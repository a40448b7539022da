"""Columns of different bit widths: their values written out, their cost, and saving them."""

import json

import pytest
import torch
from torch import Tensor

from sinq import CompressedLinear, Grid, QuantizedTensor, choose
from sinq.formats.base import rebuilt, stored_as
from sinq.formats.mixed_columns import ColumnLevels, MixedColumns
from sinq.formats.rounding import positions
from sinq.kernels.product import Choice

WIDTHS = (1, 2, 3, 4)
GRID = Grid(2, 32)


def made(bits: Tensor, rows: int = 96, grid: Grid = GRID) -> tuple[MixedColumns, Tensor]:
    """A random matrix rounded to nearest with these bits per column, and itself."""
    weight = torch.randn(rows, len(bits), generator=torch.Generator().manual_seed(0))
    levels = ColumnLevels.of(bits, WIDTHS, grid)
    scale, zero = choose(weight, grid)
    assert zero is not None
    return MixedColumns.store(
        levels.nearest(positions(weight, scale, zero)), levels, grid, scale, zero, {"odd": 1.0}
    ), weight


def drawn(columns: int = 128) -> Tensor:
    return torch.randint(1, 5, (columns,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
def test_each_weight_is_its_formula_written_out(auxiliary_bits: int) -> None:
    bits, grid = drawn(), Grid(2, 32, auxiliary_bits=auxiliary_bits)
    value, _ = made(bits, rows=7, grid=grid)
    codes, scale, zero, found = value.codes(), value.scale(), value.zero(), value.dequantize()
    for i in range(7):
        for j, width in enumerate(bits.tolist()):
            code, s, z = codes[i, j].item(), scale[i, j // 32].item(), zero[i, j // 32].item()
            assert code < 2**width
            # 1 bit: the middle of 0 … 3, ± a quarter of it
            position = 0.75 + 1.5 * code if width == 1 else 3 / (2**width - 1) * code
            assert found[i, j].item() == pytest.approx((position - z) * s, abs=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_nearest_code_is_the_nearest_by_trying_all(width: int) -> None:
    levels = ColumnLevels.of(torch.full((1,), width), WIDTHS, GRID)
    position = torch.linspace(-1, 4, 1001)[:, None]
    every = levels.position(torch.arange(2**width, dtype=torch.uint8)[:, None]).T
    found = levels.position(levels.nearest(position))
    torch.testing.assert_close((found - position).abs()[:, 0], (every - position).abs().amin(1))


def test_columns_of_the_grids_own_width_are_the_grid(weight: Tensor) -> None:
    scale, zero = choose(weight, GRID)
    assert zero is not None
    levels = ColumnLevels.of(torch.full((128,), 2), WIDTHS, GRID)
    value = MixedColumns.store(levels.nearest(positions(weight, scale, zero)), levels, GRID, scale, zero, {})
    plain = QuantizedTensor.round(weight, GRID)
    assert torch.equal(value.codes(), plain.codes())
    assert torch.equal(value.dequantize(), plain.dequantize())
    assert value.nbytes == plain.nbytes + 2 * 128 // 8


def test_every_byte_is_counted() -> None:
    bits = drawn()
    value, weight = made(bits)
    assert (
        value.nbytes
        == sum(-(-96 * int((bits == width).sum()) * width // 8) for width in WIDTHS)
        + 96 * 4 * 4
        + 128 * 2 // 8
    )
    assert value.bits_per_weight == pytest.approx(bits.float().mean().item() + 32 / 32 + 2 / 96)
    assert value.shape == weight.shape
    assert value.notes == {"odd": 1.0}


def test_a_width_no_column_has_takes_no_space() -> None:
    value, _ = made(torch.tensor([1, 4] * 32))
    assert {name for name in value.state_dict() if name.startswith("codes")} == {"codes_1", "codes_4"}
    assert torch.equal(value.bits(), torch.tensor([1, 4] * 32))


@pytest.mark.parametrize("columns", [32, 96])
def test_state_and_config_rebuild_it_bit_for_bit(columns: int) -> None:
    value, _ = made(drawn(columns), rows=5)
    assert not any("." in name for name in value.state_dict())  # names of buffers
    again = rebuilt(json.loads(json.dumps(stored_as(value))), value.state_dict())
    assert torch.equal(again.dequantize(), value.dequantize())
    assert (again.notes, again.shape, again.nbytes) == (value.notes, value.shape, value.nbytes)


def test_a_finer_column_is_nearer_to_the_weight() -> None:
    errors = []
    for width in WIDTHS:
        value, weight = made(torch.full((128,), width))
        errors.append((value.dequantize() - weight).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.4 * errors[0]


def test_its_product_is_that_of_what_it_stands_for() -> None:
    value, _ = made(drawn())
    x, bias = torch.randn(3, 128, generator=torch.Generator().manual_seed(2)), torch.ones(96)
    layer = CompressedLinear(value, bias)
    assert layer.choice == Choice(refusals=("MixedColumns has no cpu kernel",))
    torch.testing.assert_close(
        layer(x).double(), x.double() @ value.dequantize(torch.float64).T + 1, rtol=1e-5, atol=1e-4
    )
