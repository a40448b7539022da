import pytest
import torch
from torch import Tensor

from baselines.rtn import RTN
from sinq import SINQ, Grid, HalfQuadratic, Levels, Sinkhorn
from sinq.methods.sinq import kurtosis

RELEASE = {"sinkhorn": Sinkhorn(relative_floors=False), "kurtosis_gate": 5.0}


def error(method: SINQ | RTN, weight: Tensor) -> float:
    return ((method.quantize(weight).dequantize() - weight).norm() / weight.norm()).item()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_sinq_beats_rounding_where_columns_differ(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 256, generator=generator) * torch.randn(1, 256, generator=generator).exp()
    assert error(SINQ(Grid(bits)), weight) < error(RTN(Grid(bits)), weight)


@pytest.mark.parametrize(
    "method", [SINQ(Grid(group_size=32)), RTN(Grid(8, 32)), SINQ(Grid(8, 32))], ids=["sinq4", "rtn8", "sinq8"]
)
@pytest.mark.parametrize("exponent", [-30, -16, -9, -3, 5, 12])
def test_the_result_does_not_depend_on_the_scale_of_the_weights(
    weight: Tensor, method: SINQ | RTN, exponent: int
) -> None:
    plain, scaled = method.quantize(weight), method.quantize(weight * 2.0**exponent)
    assert torch.equal(scaled.codes(), plain.codes())
    torch.testing.assert_close(scaled.dequantize(), plain.dequantize() * 2.0**exponent, rtol=2**-10, atol=0)


@pytest.mark.parametrize("std", [10.0, 0.02, 3e-5, 1e-6])
@pytest.mark.parametrize("bits", [4, 8])
def test_dead_rows_and_a_loud_column_are_stored_at_any_scale(std: float, bits: int) -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    weight[:, 7] *= 200
    weight[:150] = 0

    def quiet_error(auxiliary_bits: int, size: float) -> float:
        result = SINQ(Grid(bits, auxiliary_bits=auxiliary_bits)).quantize(size * weight).dequantize() / size
        assert (result[:150] == 0).all()
        quiet = [column for column in range(256) if column != 7]
        return ((result - weight)[150:, quiet].norm() / weight[150:, quiet].norm()).item()

    exact = quiet_error(32, 1.0)
    assert exact < 0.15
    assert quiet_error(16, std) < 1.02 * exact
    assert quiet_error(8, std) < 1.15 * exact


def test_kurtosis_of_known_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    assert kurtosis(torch.randn(1000, 1000, generator=generator)) == pytest.approx(3, rel=0.02)
    assert kurtosis(1e-4 * torch.rand(1000, 1000, generator=generator)) == pytest.approx(1.8, rel=0.02)
    assert kurtosis(torch.zeros(4, 4)) == 0


def test_the_gate_fires_above_its_threshold_and_says_so(weight: Tensor) -> None:
    assert kurtosis(weight) > 5
    gated = SINQ(Grid(group_size=32), **RELEASE).quantize(weight)
    assert torch.equal(gated.dequantize(), RTN(Grid(group_size=32)).quantize(weight).dequantize())
    assert gated.notes["gated_by_kurtosis"] == pytest.approx(kurtosis(weight), rel=1e-5)
    gaussian = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    assert not SINQ(Grid(group_size=32), **RELEASE).quantize(gaussian).notes


@pytest.mark.parametrize("levels", [Levels.nf4, Levels.nf3])
def test_tables_survive_the_gate(weight: Tensor, levels: Levels) -> None:
    # The release rounds a gated matrix to uniform codes and reads them through the table.
    # Its relative error is 2.8 to 3.9.
    grid = Grid(bits=levels.bits or 0, group_size=32, levels=levels)
    gated = SINQ(grid, **RELEASE).quantize(weight)
    assert gated.notes
    assert ((gated.dequantize() - weight).norm() / weight.norm()).item() < 0.4


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_refinement_lowers_the_mean_error_it_minimises(weight: Tensor, bits: int) -> None:
    def mean_error(method: SINQ) -> float:
        return (method.quantize(weight).dequantize() - weight).abs().mean().item()

    refined = SINQ(Grid(bits, 32), refinement=HalfQuadratic(reround=True))
    assert mean_error(refined) < mean_error(SINQ(Grid(bits, 32)))


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"refinement .* auxiliary_bits=16 or 32"):
        SINQ(Grid(auxiliary_bits=8), refinement=HalfQuadratic())
    with pytest.raises(ValueError, match="kurtosis_gate=-1"):
        SINQ(kurtosis_gate=-1.0)
    for option in ("steps", "norm", "beta"):
        with pytest.raises(ValueError, match=f"refinement.{option}=0"):
            HalfQuadratic(**{option: 0})


def test_edge_matrices_give_finite_results() -> None:
    for matrix in (torch.zeros(32, 64), torch.ones(32, 64), torch.eye(64), torch.full((32, 64), -3e-5)):
        result = SINQ(Grid(group_size=32)).quantize(matrix).dequantize()
        assert torch.isfinite(result).all()
        torch.testing.assert_close(result, matrix, rtol=0.01, atol=1e-8)
