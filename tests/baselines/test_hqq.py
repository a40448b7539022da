from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from baselines.hqq import HQQ
from baselines.rtn import RTN
from sinq import Grid, HalfQuadratic, Kernel, Levels, NotApplicable, using
from tests.conftest import SHARED, needs_golden

PREFIX = "hqq."


def entries() -> list[tuple[str, str]]:
    """(file, tensor) of every result of the hqq package."""
    found = []
    for file in sorted((SHARED / "golden").glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            found += [(file.name, key) for key in list(content.keys()) if key.startswith(PREFIX)]
    return found or [("golden files", "absent")]  # so that the skipped test is seen


@needs_golden
@pytest.mark.parametrize(("file", "key"), entries())
@pytest.mark.parametrize("kernel", [Kernel.reference, Kernel.auto])
def test_agrees_with_the_hqq_package(file: str, key: str, kernel: Kernel) -> None:
    with safe_open(Path(SHARED, "golden", file), "pt") as content:
        weight, expected = content.get_tensor("weight"), content.get_tensor(key)
    _, bits, group, start, _ = key.split(".")
    grid = Grid(bits=int(bits[1:]), group_size=int(group[1:]), auxiliary_bits=32)
    with using(kernel):
        method = HQQ(grid, round_zero=start == "round_zero1")
        result = method.quantize(weight).dequantize()
        if method.round_zero == (grid.bits == 4):  # what the package does at these bits
            assert torch.equal(HQQ(grid).quantize(weight).dequantize(), result)
    same = (result - expected).abs() <= 1e-4 * expected.abs().max(1, keepdim=True).values
    # Bit by bit where torch sums as it did for the package.
    # In another order (AVX-512), a weight halfway between codes may go to the other code.
    assert same.float().mean() >= (0.9999 if sums_as_with_avx2() else 0.998)
    assert (result - weight).norm().item() == pytest.approx((expected - weight).norm().item(), rel=1e-3)


def sums_as_with_avx2() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def by_hand(row: list[float], steps: int, beta: float, growth: float, p: float) -> list[float]:
    """One group at 2 bits, in the package's words but for a loop over weights."""
    scale = (max(row) - min(row)) / 3
    zero, best = -min(row) / scale, float("inf")
    for _ in range(steps):
        codes = [min(3, max(0, round(w / scale + zero))) for w in row]
        errors = [w - (q - zero) * scale for w, q in zip(row, codes, strict=True)]
        shrunk = [
            max(0.0, abs(e) - abs(e) ** (p - 1) / beta) * (1 if e > 0 else -1) if e else 0.0 for e in errors
        ]
        zero = sum(q - (w - e) / scale for q, w, e in zip(codes, row, shrunk, strict=True)) / len(row)
        beta *= growth
        error = sum(map(abs, errors)) / len(row)
        if error >= best:
            break
        best = error
    return [(min(3, max(0, round(w / scale + zero))) - zero) * scale for w in row]


@pytest.mark.parametrize("beta", [2.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 4])
def test_agrees_with_a_loop_over_one_group(beta: float, seed: int) -> None:
    row = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    method = HQQ(
        Grid(bits=2, group_size=16, auxiliary_bits=32),
        HalfQuadratic(12, 0.7, beta, 1.3, early_stop=True, reround=True),
    )
    expected = torch.tensor(by_hand(row.double().tolist(), 12, beta, 1.3, 0.7))
    torch.testing.assert_close(method.quantize(row[None]).dequantize()[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mean_error_is_below_that_of_round_to_nearest(bits: int) -> None:
    weight = 0.3 * torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    grid = Grid(bits=bits, group_size=64)
    refined, nearest = (method.quantize(weight).dequantize() for method in (HQQ(grid), RTN(grid)))
    assert (refined - weight).abs().mean() < (nearest - weight).abs().mean()


@pytest.mark.parametrize("row", [torch.zeros(64), torch.full((64,), 0.3), torch.eye(64)[5]])
def test_degenerate_groups_are_exact(row: Tensor) -> None:
    result = HQQ(Grid(bits=4, group_size=64)).quantize(torch.stack([row, torch.linspace(-1, 1, 64)]))
    torch.testing.assert_close(result.dequantize()[0], row, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [{"symmetric": True}, {"auxiliary_bits": 8}, {"levels": Levels.nf4}])
def test_refuses_grids_without_fractional_zeros(change: dict) -> None:
    with pytest.raises(NotApplicable, match="fractions"):
        HQQ(replace(Grid(), **change))


@pytest.mark.parametrize("change", [{"steps": 0}, {"growth": 0.9}, {"beta": 0.0}, {"norm": 1.5}])
def test_names_the_option_that_is_wrong(change: dict) -> None:
    with pytest.raises(ValueError, match=f"refinement.{next(iter(change))}="):
        HalfQuadratic(**change)
