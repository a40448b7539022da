import numpy as np
import pytest
import torch

from baselines.rtn import RTN
from sinq import Grid
from sinq.grid import BITS


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
