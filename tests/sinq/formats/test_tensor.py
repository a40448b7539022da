import pytest
import torch
from torch import Tensor

from baselines.rtn import RTN
from sinq import SINQ, Grid, Levels, QuantizedTensor
from sinq.formats.grid import BITS


def relative_error(weight: Tensor, result: QuantizedTensor) -> float:
    return ((result.dequantize() - weight).norm() / weight.norm()).item()


@pytest.mark.parametrize("tiling", [1, 2])
@pytest.mark.parametrize("levels", [Levels.uniform, Levels.nf4])
@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
def test_dequantize_is_the_formula_of_the_design(
    weight: Tensor, tiling: int, levels: Levels, auxiliary_bits: int
) -> None:
    result = SINQ(
        Grid(bits=4, group_size=32, tiling=tiling, levels=levels, auxiliary_bits=auxiliary_bits)
    ).quantize(weight)
    codes, scale, zero, col_scale = result.codes(), result.scale(), result.zero(), result.col_scale()
    assert isinstance(zero, Tensor)
    assert col_scale is not None
    table = torch.arange(16.0) if levels is Levels.uniform else torch.tensor(levels.value)
    height = weight.shape[0] // len(col_scale)
    dense = result.dequantize()
    for i, j in ((0, 0), (5, 127), (95, 64), (40, 33)):
        expected = (
            (table[int(codes[i, j])] - zero[i, j // 32]) * scale[i, j // 32] * col_scale[i // height, j]
        )
        torch.testing.assert_close(dense[i, j], expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("auxiliary_bits", [8, 16])
def test_bits_per_weight_is_what_is_stored(bits: int, auxiliary_bits: int) -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    grid = Grid(bits, 64, auxiliary_bits=auxiliary_bits)
    plain, dual = RTN(grid).quantize(weight), SINQ(grid).quantize(weight)
    # scale and zero: 16 bits each, or a byte each and a (low, step) pair per 32 scales
    per_group = 32 if auxiliary_bits == 16 else 8 + 8 + 32 / 32
    assert plain.bits_per_weight == pytest.approx(bits + per_group / 64)
    assert dual.bits_per_weight == pytest.approx(bits + per_group / 64 + 16 / 256)
    assert plain.nbytes == sum(
        tensor.numel() * tensor.element_size() for tensor in plain.state_dict().values()
    )


def test_symmetric_stores_no_zero(weight: Tensor) -> None:
    assert "zero" not in RTN(Grid(symmetric=True)).quantize(weight).state_dict()


@pytest.mark.parametrize("bits", BITS)
def test_eight_bit_auxiliaries_cost_little_quality(bits: int) -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    with_16, with_8 = (
        relative_error(weight, SINQ(Grid(bits, auxiliary_bits=a)).quantize(weight)) for a in (16, 8)
    )
    assert with_8 < 1.06 * with_16


@pytest.mark.parametrize("levels", [Levels.uniform, Levels.nf4])
def test_a_narrow_positive_group_does_not_wreck_the_matrix(levels: Levels) -> None:
    # In the release such a group stretches the one range all zeros share: relative error 0.09 → 0.72.
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    grid = Grid(bits=4, levels=levels, auxiliary_bits=8)
    before = relative_error(weight, SINQ(grid).quantize(weight))
    weight[7, 64:128] = 0.05 + 1e-5 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    result = SINQ(grid).quantize(weight)
    assert relative_error(weight, result) < 1.2 * before
    assert ((result.dequantize() - weight)[7, 64:128].abs() < 0.1 * 0.05).all()


def test_scales_too_far_apart_for_float16_are_refused() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight[0] *= 1e12
    with pytest.raises(
        ValueError, match=r"scales from 2\^.* are too far apart for float16; use auxiliary_bits=8 or 32"
    ):
        RTN(Grid()).quantize(weight)
    assert relative_error(weight[1:], RTN(Grid(auxiliary_bits=8)).quantize(weight[1:])) < 0.12


def test_a_block_of_equal_scales_is_stored() -> None:
    weight = torch.linspace(-1, 1, 64).repeat(64, 1)  # the release divides 0 by 0 here
    # a sixteenth of the range, uniformly: 0.0657
    assert relative_error(weight, RTN(Grid(bits=4, auxiliary_bits=8)).quantize(weight)) < 0.07


@pytest.mark.parametrize(
    "grid",
    [
        Grid(3, 32),
        Grid(levels=Levels.nf4, group_size=32, auxiliary_bits=8),
        Grid(symmetric=True, group_size=32),
    ],
)
def test_a_value_is_rebuilt_from_its_configuration_and_tensors(weight: Tensor, grid: Grid) -> None:
    value = SINQ(grid).quantize(weight)
    again = QuantizedTensor.from_state(value.config(), value.state_dict())
    assert again.grid == grid
    assert torch.equal(again.dequantize(), value.dequantize())
