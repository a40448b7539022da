"""Round to nearest, NF4 and FP4: against a loop in numpy, bitsandbytes and bit patterns of 4-bit floats."""

import numpy as np
import pytest
import torch

from baselines.rtn import RTN
from sinq import Grid, Levels
from sinq.formats.grid import BITS
from tests.conftest import needs_golden
from tests.golden import golden_entries, read_golden


@pytest.mark.parametrize("bits", BITS)
def test_rounding_agrees_with_a_loop_in_numpy(weight: torch.Tensor, bits: int) -> None:
    result = RTN(Grid(bits=bits, group_size=32, auxiliary_bits=32)).quantize(weight).dequantize()
    expected = np.empty(weight.shape)
    for i, row in enumerate(weight.numpy()):
        for start in range(0, 128, 32):
            group = row[start : start + 32].astype(np.float64)
            step = (group.max() - group.min()) / (2**bits - 1)
            zero = -np.round(group.min() / step)
            codes = (np.round(group / step) + zero).clip(0, 2**bits - 1)
            expected[i, start : start + 32] = (codes - zero) * step
    differs = np.abs(result.numpy() - expected) > 1e-5 * np.abs(expected).max(1, keepdims=True)
    assert differs.mean() < 1e-3  # ties aside


@needs_golden
@pytest.mark.parametrize(("file", "name"), golden_entries("bnb"))
def test_nf4_is_that_of_bitsandbytes(file: str, name: str) -> None:
    golden = read_golden(file)
    result = (
        RTN(Grid(4, 64, levels=Levels.nf4, symmetric=True, auxiliary_bits=32))
        .quantize(golden["weight"])
        .dequantize()
    )
    same = torch.isclose(result, golden[name].float(), rtol=1e-4, atol=1e-4 * golden["weight"].std().item())
    assert same.float().mean() > 0.9999  # ties aside


def test_fp4_levels_are_those_of_its_bits() -> None:
    """Sign, two exponent bits, one mantissa bit, over the largest (12); subnormal 1/16 as in bitsandbytes."""
    normal = [2.0**exponent * (1 + mantissa / 2) for exponent in (1, 2, 3) for mantissa in (0, 1)]
    positive = [0.0, 1 / 16, *normal]
    expected = sorted([value / 12 for value in positive] + [-value / 12 for value in positive])
    assert list(Levels.fp4.value) == pytest.approx(expected)


def test_fp4_rounds_to_the_nearest_level(weight: torch.Tensor) -> None:
    result = (
        RTN(Grid(4, 32, levels=Levels.fp4, symmetric=True, auxiliary_bits=32)).quantize(weight).dequantize()
    )
    groups = weight.reshape(96, -1, 32)
    levels = torch.tensor(Levels.fp4.value) * groups.abs().amax(-1, keepdim=True)
    nearest = (groups[..., None] - levels[..., None, :]).abs().amin(-1)
    torch.testing.assert_close((groups - result.reshape(groups.shape)).abs(), nearest, rtol=1e-4, atol=1e-6)
