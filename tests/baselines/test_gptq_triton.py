"""GPTQ's Triton kernel against its loop: the same codes, but for weights at the edge between two."""

import pytest
import torch
from torch import Tensor

from baselines.gptq import GPTQ, ActOrder
from baselines.mgptq import MGPTQ
from baselines.mgptq.method import Allocator
from baselines.rtn import RTN
from sinq import SINQ, Grid, Kernel, LayerMethod, Levels, SINQRefined, using
from sinq.calibration.statistics import Hessian
from tests.baselines.inputs import correlated

pytest.importorskip("triton")

pytestmark = pytest.mark.interpreted  # see tests/interpreter.py

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def hessian(width: int) -> Hessian:
    statistic = Hessian(width, torch.device(DEVICE))
    statistic.update(correlated(200, width).to(DEVICE))
    return statistic


def matrix(rows: int, columns: int) -> Tensor:
    return (0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))).to(DEVICE)


@pytest.mark.parametrize("order", ActOrder)
@pytest.mark.parametrize(
    ("inner", "rows", "columns", "block"),
    [
        (RTN(Grid(3, 16)), 20, 48, 32),
        (RTN(Grid(2, 12, auxiliary_bits=8)), 33, 36, 24),
        (SINQ(Grid(4, 16)), 16, 32, 128),
        (SINQ(Grid(3, 16, tiling=2)), 32, 32, 128),
        (SINQRefined(Grid(3, 16)), 5, 32, 16),
    ],
    ids=["rtn", "odd", "sinq", "tiles", "refined"],
)
def test_codes_and_scales_are_those_of_the_loop(
    inner: RTN | SINQ | SINQRefined, rows: int, columns: int, block: int, order: ActOrder
) -> None:
    assert_same(GPTQ(inner, block=block, act_order=order), matrix(rows, columns))


def test_columns_may_have_levels_of_their_own() -> None:
    method = MGPTQ(Grid(2, 16), allocator=Allocator.random)
    found, expected = both(method, matrix(20, 48))
    torch.testing.assert_close(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize("grid", [Grid(4, 16, symmetric=True), Grid(4, 16, levels=Levels.nf4)])
def test_other_grids_keep_the_loop(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.gptq import triton

    monkeypatch.setattr(triton, "_run", lambda *_: pytest.fail("the kernel ran"))
    assert_same(GPTQ(RTN(grid)), matrix(8, 32))


def both(method: LayerMethod, weight: Tensor):  # type: ignore[no-untyped-def]
    with using(Kernel.reference):
        expected = method.quantize(weight, hessian(weight.shape[1]))
    with using(Kernel.triton):
        return method.quantize(weight, hessian(weight.shape[1])), expected


def assert_same(method: GPTQ, weight: Tensor) -> None:
    found, expected = both(method, weight)
    assert (found.codes() != expected.codes()).double().mean() < 0.01
    torch.testing.assert_close(found.scale(), expected.scale(), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        torch.as_tensor(found.zero()), torch.as_tensor(expected.zero()), rtol=1e-2, atol=1e-2
    )
