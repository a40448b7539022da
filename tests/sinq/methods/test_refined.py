from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sinq import SINQ, Grid, Levels, Normalized, NotApplicable
from sinq.algorithms.solved_scales import narrow, orthogonal
from sinq.formats.grid import BITS
from sinq.kernels import column_magnitudes
from sinq.methods.sinq_refined import SINQRefined
from tests.conftest import SHARED, needs_golden

GRID = Grid(bits=3, group_size=32, auxiliary_bits=32)


def groups(matrix: Tensor, size: int = 32) -> Tensor:
    return matrix.double().reshape(len(matrix), -1, size)


def test_column_magnitudes_agree_with_numpy(weight: Tensor) -> None:
    result = column_magnitudes(weight, (96, 32), passes=3)
    for start in range(0, 128, 32):
        tile = np.abs(weight.double().numpy()[:, start : start + 32])
        column = np.ones(32)
        for _ in range(3):
            row = np.sqrt(((tile / column) ** 2).mean(1, keepdims=True))
            column = (tile / row).mean(0)
        expected = column / np.exp(np.log(column).mean())
        np.testing.assert_allclose(result[0, start : start + 32].numpy(), expected, rtol=1e-4)


def test_one_large_weight_hardly_moves_its_column() -> None:
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    before = column_magnitudes(weight, (512, 64))
    weight[7, 3] = 40.0
    assert column_magnitudes(weight, (512, 64))[0, 3] / before[0, 3] == pytest.approx(1, abs=0.1)
    assert weight.std(0)[3] > 1.8  # whereas the standard deviation nearly doubles


def test_error_has_no_part_along_a_constant_nor_along_the_group(weight: Tensor) -> None:
    scale, zero = narrow(weight, GRID, 0.9)
    levels = groups(
        (weight.reshape(96, -1, 32) / scale[..., None] + zero[..., None]).round().clamp(0, 7).reshape(96, 128)
    )
    counts = torch.rand(1, 4, 32, generator=torch.Generator().manual_seed(0)) + 0.1
    counts /= counts.mean(-1, keepdim=True)
    scale, zero = orthogonal(weight, scale, zero, GRID, counts=counts)
    error = counts * ((levels - zero[..., None]) * scale[..., None] - groups(weight))
    size = groups(weight).square().sum(-1)
    torch.testing.assert_close(
        (error * groups(weight)).sum(-1) / size, torch.zeros_like(size), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(error.mean(-1) / size.sqrt(), torch.zeros_like(size), rtol=0, atol=1e-5)


def test_solution_is_the_only_one() -> None:
    """Two linear equations in scale and scale·zero, solved by numpy."""
    row = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    start = narrow(row, GRID, 0.8)
    codes = (row / start[0] + start[1]).round().clamp(0, 7).double().numpy()[0]
    values = row.double().numpy()[0]
    system = np.array([[codes.sum(), -32.0], [(codes * values).sum(), -values.sum()]])
    scale, offset = np.linalg.solve(system, [values.sum(), (values**2).sum()])
    result = orthogonal(row, *start, GRID, counts=torch.ones(1, 1, 32))
    np.testing.assert_allclose([result[0].item(), result[1].item()], [scale, offset / scale], rtol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_groups_keep_their_mean(weight: Tensor, bits: int) -> None:
    method = SINQRefined(replace(GRID, bits=bits))
    col_scale = method.normalize(weight).col_scale
    assert col_scale is not None
    error = (
        groups((method.quantize(weight).dequantize() - weight) / col_scale) / groups(col_scale).square()
    ).mean(-1)
    error = error / groups(col_scale).pow(-2).mean(-1)
    assert (error.abs() / groups(weight / col_scale).std(-1)).max() < 1e-4


@needs_golden
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("layer", ["L15_q_proj", "L3_down_proj"])
def test_outputs_on_unseen_inputs_are_better_than_with_sinq(layer: str, bits: int) -> None:
    with safe_open(SHARED / "golden" / f"{layer}.safetensors", "pt") as content:
        weight, inputs = content.get_tensor("weight"), content.get_tensor("activations_heldout").float()
    refined, plain = (
        inputs @ (method(Grid(bits=bits)).quantize(weight).dequantize() - weight).T
        for method in (SINQRefined, SINQ)
    )
    assert refined.norm() < 0.95 * plain.norm()


@pytest.mark.parametrize("tiling", [1, 2])
def test_scales_of_rows_and_columns_do_not_matter(weight: Tensor, tiling: int) -> None:
    method = SINQRefined(replace(GRID, tiling=tiling))
    generator = torch.Generator().manual_seed(1)
    row, column = (2.0 ** torch.randint(-2, 3, shape, generator=generator) for shape in ((96, 1), (1, 128)))
    plain = method.quantize(weight)
    scaled = method.quantize(weight * row)
    assert (scaled.codes() == plain.codes()).float().mean() > 0.999
    torch.testing.assert_close(
        scaled.dequantize() / row, plain.dequantize(), rtol=0, atol=0.05 * weight.abs().max().item()
    )
    # rows and columns balance each other: it takes passes to forget the start
    by_column = replace(method, passes=30, influence=0.0)
    plain, scaled = by_column.quantize(weight), by_column.quantize(weight * column)
    assert (scaled.codes() == plain.codes()).float().mean() > 0.999


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("row", "tolerance"),
    [
        (torch.zeros(32), 0.0),
        (torch.full((32,), 0.3), 1e-3),
        (1000 + torch.arange(32) / 3200, 1e-3),
        (torch.eye(32)[5], 0.1),
    ],
    ids=["zeros", "constant", "narrow and far from 0", "one weight"],
)
def test_degenerate_groups(row: Tensor, tolerance: float, bits: int) -> None:
    weight = torch.cat([row[None], torch.randn(31, 32, generator=torch.Generator().manual_seed(0))])
    method = SINQRefined(Grid(bits=bits, group_size=32))
    assert method.quantize(weight).dequantize().isfinite().all()
    rounded = method.round(Normalized(weight)).dequantize()[0]
    assert (rounded - row).abs().max() <= tolerance * row.abs().max()


def test_dead_columns_and_dead_matrices_stay_dead(weight: Tensor) -> None:
    weight[:, 5] = 0
    result = SINQRefined(Grid(group_size=32)).quantize(weight)
    assert result.dequantize().isfinite().all()
    assert (SINQRefined(Grid(group_size=32)).quantize(torch.zeros(64, 64)).dequantize() == 0).all()


@pytest.mark.parametrize(("bits", "levels"), [(4, Levels.nf4), (3, Levels.nf3)])
def test_takes_tables_of_levels(weight: Tensor, bits: int, levels: Levels) -> None:
    result = SINQRefined(Grid(bits=bits, group_size=32, levels=levels)).quantize(weight).dequantize()
    assert (result - weight).norm() < {4: 0.12, 3: 0.25}[bits] * weight.norm()


def test_costs_as_many_bytes_as_sinq(weight: Tensor) -> None:
    assert SINQRefined(Grid()).quantize(weight).nbytes == SINQ(Grid()).quantize(weight).nbytes


@pytest.mark.parametrize("change", [{"symmetric": True}, {"auxiliary_bits": 8}])
def test_refuses_grids_without_fractional_zeros(change: dict) -> None:
    with pytest.raises(NotApplicable, match="fractional"):
        SINQRefined(replace(Grid(), **change))


@pytest.mark.parametrize(
    "change", [{"range_share": 0.0}, {"range_share": 1.1}, {"norm": 0.0}, {"passes": 0}, {"steps": -1}]
)
def test_names_the_option_that_is_wrong(change: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}="):
        SINQRefined(**change)


@needs_golden
@pytest.mark.parametrize("file", ["L15_q_proj", "L3_down_proj"])
@pytest.mark.parametrize(("bits", "least", "most"), [(2, 0.02, 0.03), (3, 0.004, 0.008), (4, 0.001, 0.003)])
def test_the_stored_matrix_is_smaller_than_the_dense_one(
    file: str, bits: int, least: float, most: float
) -> None:
    """The shares that the module's docstring states: scales solved for leave the result with a bias."""
    with safe_open(SHARED / "golden" / f"{file}.safetensors", "pt") as content:
        weight = content.get_tensor("weight")
    stored = SINQRefined(Grid(bits)).quantize(weight).dequantize()
    assert least < 1 - ((stored * weight).sum() / weight.square().sum()).item() < most
