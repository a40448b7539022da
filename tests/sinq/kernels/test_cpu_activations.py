"""Rounding of inputs on a processor: bit for bit the definition, for any shape, also if not finite."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sinq import ActivationFormat, Kernel, using
from sinq.formats.activations import Per, QuantizedActivations
from sinq.kernels.activations import quantize
from sinq.kernels.cpu import linear

STATIC = ActivationFormat(8, Per.tensor, static=True)


def assert_same(found: QuantizedActivations, expected: QuantizedActivations) -> None:
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)
    assert (found.zero is None) == (expected.zero is None)
    if found.zero is not None and expected.zero is not None:
        assert torch.equal(found.zero, expected.zero)


def values(*shape: int, size: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) + 0.3) * size


@settings(deadline=None, max_examples=200)
@given(
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from([1.0, 0.9, 0.3]),
    st.lists(st.integers(0, 4), max_size=2),
    st.integers(1, 70),
    st.integers(0, 3),
    st.sampled_from([1e-42, 1e-30, 1e-3, 1.0, 1e30]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_it_is_the_definition(
    bits: int,
    symmetric: bool,
    clip: float,
    leading: list[int],
    size: int,
    groups: int,
    unit: float,
    dtype: torch.dtype,
) -> None:
    x = values(*leading, size * max(groups, 1), size=unit).to(dtype)
    x[..., ::5] = 0
    format = ActivationFormat(bits, group_size=size if groups else 0, symmetric=symmetric, clip_ratio=clip)
    assert_same(quantize(x, format), quantize.definition(x, format))


@pytest.mark.parametrize("symmetric", [True, False])
def test_given_scales_are_used(symmetric: bool) -> None:
    format = ActivationFormat(6, Per.tensor, symmetric=symmetric, static=True)
    given = torch.tensor(0.03), torch.tensor(0.0 if symmetric else -7.0)
    x = values(3, 5, 24)
    assert_same(quantize(x, format, *given), quantize.definition(x, format, *given))
    assert quantize(x, format, *given).codes.unique().numel() > 10


def test_a_scale_of_a_whole_call_is_the_definitions() -> None:
    x, format = values(3, 24), ActivationFormat(8, Per.tensor)
    assert_same(quantize(x, format), quantize.definition(x, format))


def test_any_layout_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SMALL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for x in (values(24, 7).T, values(4, 3, 48)[:, 1:, ::2]):
            for format in (ActivationFormat(8), ActivationFormat(4, group_size=8, symmetric=False)):
                assert_same(quantize(x, format), quantize.definition(x, format))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("format", [ActivationFormat(8), ActivationFormat(8, symmetric=False)])
def test_what_is_not_finite_is_seen(bad: float, format: ActivationFormat) -> None:
    x = values(3, 40)
    x[1, 17] = bad
    found, expected = quantize(x, format).dequantize(), quantize.definition(x, format).dequantize()
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_a_nan_is_seen_with_a_given_scale() -> None:
    x = values(3, 40)
    x[1, 17] = torch.nan
    for run in (quantize, quantize.definition):
        found = run(x, STATIC, torch.tensor(0.1), torch.tensor(0.0)).dequantize()
        assert found.isnan().all(1).tolist() == [False, True, False]


def test_the_definition_runs_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinq.kernels.cpu.activations.run", None)
    with pytest.raises(TypeError):
        quantize(values(2, 8), ActivationFormat(8))
    with using(Kernel.reference):
        quantize(values(2, 8), ActivationFormat(8))
