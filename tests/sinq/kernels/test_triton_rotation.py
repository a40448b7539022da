"""What the Triton kernel of rotations computes, against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinq import Kernel, Rotation, using
from sinq.kernels.rotation import rotated, rotated_rows

pytest.importorskip("triton")

from sinq.kernels.triton import rotation as kernel

pytestmark = pytest.mark.interpreted  # see tests/interpreter.py

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_rotated(size: int, count: int, back: bool, dtype: torch.dtype, seed: int = 0) -> None:
    rotation = Rotation.random(size, seed, DEVICE)
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    found, expected = kernel.rotated_rows(rows, rotation, back), rotated_rows.definition(rows, rotation, back)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("size", [1, 2, 12, 64, 128, 576, 1536, 4096, 14336])
def test_real_and_smallest_sizes(size: int, back: bool) -> None:
    assert_rotated(size, 3, back, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_other_types(dtype: torch.dtype) -> None:
    assert_rotated(96, 2, False, dtype)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([4, 8, 20, 24, 40, 80, 144, 256]),
    count=st.integers(0, 40),
    back=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_number_of_rows(size: int, count: int, back: bool, seed: int) -> None:
    assert_rotated(size, count, back, torch.float32, seed)


def test_the_choice_of_kernel_gets_here(monkeypatch: pytest.MonkeyPatch) -> None:
    rotation, rows = Rotation.random(48, 0, DEVICE), torch.randn(2, 48).to(DEVICE)
    expected = rotated_rows.definition(rows, rotation)
    with using(Kernel.triton):
        torch.testing.assert_close(rotated(rows, rotation), expected, rtol=0, atol=1e-5)
        monkeypatch.setattr(kernel, "butterflies", None)
        with pytest.raises(TypeError):
            rotated(rows, rotation)
