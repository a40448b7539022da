"""Triton's attention to blocks of keys, against the definition."""

import pytest
import torch

from sinq.kernels.block_attention import attend_blocks
from tests.sinq.kernels.attended import inputs

pytest.importorskip("triton")

from sinq.kernels.triton import block_attention as kernel

pytestmark = pytest.mark.interpreted  # see tests/interpreter.py

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("tokens", "blocks", "kept"), [(3, 8, 0.5), (6, 4, 1.0), (2, 4, 0.0)])
def test_it_computes_the_definition(
    tokens: int, blocks: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "KEYS", 4)
    query, key, value, mask, scale = inputs(tokens, blocks, kept, heads=2, kv_heads=1, batch=1)
    given = [tensor.to(DEVICE) for tensor in (query, key, value, mask)]
    found = kernel.attend_blocks(*given, scale)
    torch.testing.assert_close(found, attend_blocks.definition(*given, scale), rtol=0, atol=1e-5)


def test_a_width_that_is_no_power_of_two_and_half_precision_are_covered() -> None:
    query, key, value, mask, scale = inputs(3, 4, heads=2, kv_heads=1, batch=1)
    given = [states[..., :6].to(DEVICE, torch.float16) for states in (query, key, value)]
    found = kernel.attend_blocks(*given, mask.to(DEVICE), scale)
    assert found.dtype is torch.float16
    expected = attend_blocks.definition(*given, mask.to(DEVICE), scale)
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=2e-3)
