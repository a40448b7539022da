"""Activation formats: brute force in float64, then properties, then what is refused."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sinq.common.errors import NotApplicable
from sinq.formats.activations import ACTIVATION_BITS, ActivationFormat, Per, QuantizedActivations

ROUNDED = [bits for bits in ACTIVATION_BITS if bits < 16]
FORMATS = st.builds(
    ActivationFormat,
    bits=st.sampled_from(ROUNDED),
    group_size=st.sampled_from([0, 4]),
    symmetric=st.booleans(),
    clip_ratio=st.sampled_from([1.0, 0.9]),
) | st.builds(
    ActivationFormat, bits=st.sampled_from(ROUNDED), per=st.just(Per.tensor), symmetric=st.booleans()
)
VALUES = st.lists(
    st.lists(st.floats(-100, 100, width=16), min_size=8, max_size=8), min_size=1, max_size=3
).map(torch.tensor)


def rounded(format: ActivationFormat, x: Tensor) -> Tensor:
    return format.rounded(x, *format.scales(*format.extremes(x)))


def by_hand(values: list[float], format: ActivationFormat) -> list[float]:
    """Round numbers that share a scale, one by one, to the nearest of all levels."""
    half = 2 ** (format.bits - 1)
    low, high = min(0.0, *values) * format.clip_ratio, max(0.0, *values) * format.clip_ratio
    scale = max(-low, high) / (half - 1) if format.symmetric else (high - low) / (2 * half - 1)
    if scale == 0:
        return [0.0] * len(values)
    zero = 0 if format.symmetric else round(-low / scale) - half
    levels = [(code - zero) * scale for code in range(-half, half)]
    return [min(levels, key=lambda level: abs(level - value)) for value in values]


@given(VALUES, FORMATS)
def test_each_value_takes_the_nearest_level(x: Tensor, format: ActivationFormat) -> None:
    """Against all levels by brute force; halfway between two, either may be taken."""
    parts = x.reshape(-1, format.group_size or 8) if format.per is Per.token else x.reshape(1, -1)
    expected = torch.tensor([by_hand(part.tolist(), format) for part in parts], dtype=torch.float64)
    found = rounded(format, x).reshape(parts.shape).double()
    distance, best = (found - parts).abs(), (expected - parts).abs()
    assert (distance <= best + 1e-4 * parts.abs().amax() + 1e-12).all()


@given(VALUES, FORMATS)
def test_zero_stays_zero_and_the_unit_does_not_matter(x: Tensor, format: ActivationFormat) -> None:
    x = torch.where(torch.arange(8) % 3 == 0, 0.0, x)
    found = rounded(format, x)
    assert (found[x == 0] == 0).all()
    assert torch.equal(rounded(format, 2 * x), 2 * found)


@given(VALUES, st.sampled_from(ROUNDED), st.booleans())
def test_nothing_is_farther_off_than_half_a_step(x: Tensor, bits: int, symmetric: bool) -> None:
    format = ActivationFormat(bits, symmetric=symmetric)
    scale, _ = format.scales(*format.extremes(x))
    # A whole zero moves the ends of an asymmetric range by up to half a step.
    assert ((rounded(format, x) - x).abs() <= scale * (0.5 if symmetric else 1.0) + 1e-5 * x.abs()).all()


@given(VALUES, FORMATS)
def test_codes_are_whole_and_stand_for_the_rounded_values(x: Tensor, format: ActivationFormat) -> None:
    found = format.quantize(x, *format.scales(*format.extremes(x)))
    half, zero = 2 ** (format.bits - 1), torch.zeros_like(found.scale) if found.zero is None else found.zero
    assert found.codes.dtype == torch.int8
    assert -half <= found.codes.min().item() <= found.codes.max().item() < half
    assert torch.equal(zero, zero.round().clamp(-half, half - 1))
    assert (found.zero is None) == format.symmetric
    spread, offset = (each.repeat_interleave(found.group_size, -1) for each in (found.scale, zero))
    assert torch.equal((found.codes.float() - offset) * spread, rounded(format, x))


@pytest.mark.parametrize("group_size", [0, 4])
@pytest.mark.parametrize("per", list(Per))
def test_any_leading_shape_and_layout(per: Per, group_size: int) -> None:
    if group_size and per is Per.tensor:
        return
    format = ActivationFormat(8, per, group_size, symmetric=False)
    for x in (torch.randn(8), torch.randn(0, 8), torch.randn(2, 0, 8), torch.randn(8, 3).T):
        found = format.quantize(x, *format.scales(*format.extremes(x)))
        assert found.codes.shape == found.dequantize().shape == x.shape
        assert found.scale.shape == (*x.shape[:-1], 2 if group_size else 1)
        assert (found.dequantize() - x).abs().sum() <= found.scale.sum() * 8


@pytest.mark.parametrize("format", [ActivationFormat(), ActivationFormat(8, Per.tensor)])
def test_what_shares_a_scale_with_a_nan_is_nan(format: ActivationFormat) -> None:
    x = torch.randn(3, 8)
    x[1, 2] = torch.nan
    found = format.quantize(x, *format.scales(*format.extremes(x))).dequantize()
    assert found[1].isnan().all()
    assert found[[0, 2]].isnan().any() == (format.per is Per.tensor)
    static = ActivationFormat(8, Per.tensor, static=True).quantize(x, torch.tensor(0.1), torch.tensor(0.0))
    assert static.dequantize().isnan().all(-1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("codes", "scale", "zero", "message"),
    [
        (torch.zeros(2, 8), torch.ones(2, 1), None, "codes"),
        (torch.zeros(2, 8, dtype=torch.int8), torch.ones(2, 3), None, "3 scales of a token do not divide"),
        (torch.zeros(2, 8, dtype=torch.int8), torch.ones(()), None, "0 scales"),
        (torch.zeros(2, 8, dtype=torch.int8), torch.ones(3, 1), None, "scale"),
        (torch.zeros(2, 8, dtype=torch.int8), torch.ones(2, 2), torch.ones(2, 1), "zero"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    codes: Tensor, scale: Tensor, zero: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizedActivations(codes, scale, zero)


def test_what_shares_a_scale() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    loud = x.clone()
    loud[0, 0] = 1000
    for format, touched in (
        (ActivationFormat(4), x.new_zeros(3, 8).index_fill(0, torch.tensor([0]), 1)),
        (ActivationFormat(4, group_size=4), torch.tensor([[1.0] * 4 + [0.0] * 4, [0.0] * 8, [0.0] * 8])),
        (ActivationFormat(4, Per.tensor), torch.ones(3, 8)),
    ):
        changed = rounded(format, x) != rounded(format, loud)
        assert not changed[touched == 0].any()
        assert changed[touched == 1].any()


def test_the_dtype_is_kept_and_halves_do_not_overflow() -> None:
    x = torch.tensor([[60000.0, -60000.0, 1.0, 0.0]], dtype=torch.float16)
    found = rounded(ActivationFormat(8, symmetric=False), x)
    assert found.dtype == torch.float16
    assert found.isfinite().all()


@pytest.mark.parametrize("format", [ActivationFormat(4), ActivationFormat(8, Per.tensor, static=True)])
def test_json_gives_the_format_back(format: ActivationFormat) -> None:
    assert ActivationFormat.from_json(format.as_json()) == format


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, r"activation\.bits=1 is not possible"),
        ({"bits": 9}, r"activation\.bits=9"),
        ({"bits": True}, r"activation\.bits=True"),
        ({"clip_ratio": 0}, r"activation\.clip_ratio=0"),
        ({"clip_ratio": float("nan")}, r"activation\.clip_ratio=nan"),
        ({"group_size": -1}, r"activation\.group_size=-1"),
        ({"group_size": 64, "per": Per.tensor}, r"activation\.group_size=64 .* activation\.per=tensor"),
        ({"static": True}, r"activation\.static=true .* activation\.per=token"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationFormat(**options)


@pytest.mark.parametrize(
    "change", [{"per": "row"}, {"bits": 8.0}, {"bits": 1}, {"scale": 1}, {"clip_ratio": None}]
)
def test_formats_of_files_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        ActivationFormat.from_json(ActivationFormat().as_json() | change)


def test_what_excludes_each_other_is_no_plain_error() -> None:
    with pytest.raises(NotApplicable):
        ActivationFormat(static=True)
