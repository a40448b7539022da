"""Ternary steps as stored: against plain sums, by their sizes, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sinq import TernaryTensor
from sinq.formats.base import rebuilt, stored_as
from sinq.formats.ternary import TernarySteps

Parts = tuple[Tensor, Tensor, Tensor]


def parts(format: TernarySteps, rows: int = 6, columns: int = 32, salient: int = 5) -> Parts:
    """Random spikes, salient columns and scales."""
    generator = torch.Generator().manual_seed(rows)
    spikes = torch.randint(-1, 2, (format.steps, rows, columns), generator=generator, dtype=torch.int8)
    mask = torch.zeros(columns, dtype=torch.bool)
    mask[torch.randperm(columns, generator=generator)[:salient]] = True
    shape = (rows, columns // format.group_size + format.steps - 1)
    scale = (torch.rand(shape, generator=generator) + 0.1).half().float()
    return spikes, mask, scale


@pytest.mark.parametrize(("steps", "salient"), [(1, 5), (2, 0), (2, 5), (4, 32)])
def test_it_stands_for_the_sum_of_its_steps(steps: int, salient: int) -> None:
    format = TernarySteps(steps, group_size=8)
    spikes, mask, scale = parts(format, salient=salient)
    expected = torch.zeros(6, 32, dtype=torch.float64)
    for i in range(6):
        for j in range(32):
            expected[i, j] = scale[i, j // 8].double() * spikes[0, i, j]
            for t in range(1, steps if mask[j] else 1):
                expected[i, j] += scale[i, 4 + t - 1].double() * spikes[t, i, j]
    value = TernaryTensor.store(spikes, mask, scale, format)
    torch.testing.assert_close(value.dequantize(torch.float64), expected, atol=1e-6, rtol=1e-6)
    again = rebuilt(stored_as(value), value.state_dict())
    assert torch.equal(again.dequantize(), value.dequantize())


def test_its_size_is_the_formula_s() -> None:
    format = TernarySteps(5, 0.1, 64)
    value = TernaryTensor.store(*parts(format, 640, 640, 64), format)
    expected = 1.6 * 1.4 + 16 / 64 + 16 * 4 / 640 + 1 / 640
    assert value.bits_per_weight == pytest.approx(expected, rel=1e-4)


def test_scales_can_be_trained_through() -> None:
    format = TernarySteps(2, group_size=8)
    value = TernaryTensor.store(*parts(format), format)
    assert value.tunable() == ("scale",)
    scale = value.tensors["scale"].float().requires_grad_()
    value.with_tensors({"scale": scale}).dequantize().sum().backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None
    assert scale.grad.abs().sum() > 0


def test_groups_that_do_not_fit_are_made_smaller() -> None:
    misfit = TernarySteps().incompatibility((8, 172))
    assert misfit is not None
    assert misfit.reason == "group_size=64 does not divide"
    assert TernarySteps().shrunk((8, 172)) == TernarySteps(group_size=43)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("codes", lambda t: t.fill_(243), "codes has a word 243; words are below 243"),
        ("salient_codes", lambda t: t.fill_(255), "salient_codes has a word 255; words are below 243"),
        ("salient", lambda t: t.fill_(255), "salient has 32 columns; it must have 5"),
        ("scale", lambda t: t.fill_(float("nan")), "scale has NaN or Inf; it must be finite"),
        ("codes", lambda t: t[:-1], "codes is uint8"),
    ],
)
def test_damage_is_refused(name: str, change: Any, message: str) -> None:
    format = TernarySteps(3, group_size=8)
    value = TernaryTensor.store(*parts(format), format)
    tensors = {key: tensor.clone() for key, tensor in value.state_dict().items()}
    tensors[name] = change(tensors[name])
    with pytest.raises(ValueError, match=message):
        rebuilt(stored_as(value), tensors)


@pytest.mark.parametrize("option", [{"steps": 0}, {"share": 1.5}, {"group_size": 0}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"format.{next(iter(option))}"):
        TernarySteps(**option)
