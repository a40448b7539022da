"""Ternary weights: against plain Python, what steps and feedback are for, and models that are kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sinq
from baselines.spikellm import SpikeLLM, Ternary
from baselines.spikellm.ternary import fed_back, fire, fitted, scales
from sinq import Calibration, TernaryTensor
from sinq.calibration.statistics import Hessian
from sinq.formats.ternary import TernarySteps
from sinq.model.linear import CompressedLinear
from tests.conftest import tiny_model, tiny_tokens

METHOD = Ternary(TernarySteps(steps=3, share=0.25, group_size=16))


def inputs(columns: int, tokens: int = 400) -> Tensor:
    """Correlated inputs of channels of different sizes."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    return torch.randn(tokens, columns, generator=generator) @ mixed * (1 + torch.arange(columns) % 5)


def hessian(x: Tensor) -> Hessian:
    seen = Hessian(x.shape[1], torch.device("cpu"))
    seen.update(x)
    return seen


def matrix(rows: int = 24, columns: int = 64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def test_a_scale_is_the_best_of_its_threshold() -> None:
    """Lloyd's fixed point: the mean of what is above half of the scale; near the best of all scales."""
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    scale = fitted(values[None]).item()
    above = values.abs() > scale / 2
    assert values.abs()[above].mean().item() == pytest.approx(scale, rel=1e-3)

    def error(alpha: float) -> float:
        return float(fire(values, torch.tensor([alpha]))[1].square().sum())

    assert error(scale) <= 1.02 * min(error(alpha / 50) for alpha in range(1, 200))
    assert fitted(torch.zeros(1, 3)).item() == 1


def test_neurons_fire_the_nearest_and_keep_the_rest() -> None:
    spikes, left = fire(torch.tensor([2.2, -0.3, 0.9, -1.6]), torch.tensor([[1.0], [0.5]]).expand(2, 4))
    assert spikes.tolist() == [[1, 0, 1, -1], [1, -1, 0, -1]]
    torch.testing.assert_close(left, torch.tensor([0.7, 0.2, -0.1, -0.1]))


def test_feedback_is_that_of_one_column_after_the_other() -> None:
    """Against a loop in float64 that changes all later columns at once, over more than one lazy block."""
    weight, columns = matrix(3, 192), 192
    format = TernarySteps(2, 0.25, 64)
    salient = torch.arange(columns) % 4 == 0
    scale = scales(weight, salient, format)
    cov = hessian(inputs(columns, 2000)).matrix()
    damped = cov + 0.01 * cov.diagonal().mean() * torch.eye(columns)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped)).T
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(factor, upper)
    found = fed_back(weight, scale, salient, format, upper.float())
    work, expected = weight.double(), torch.zeros_like(found)
    for j in range(columns):
        steps = [scale[:, j // 64], scale[:, 3]] if salient[j] else [scale[:, j // 64]]
        left = work[:, j].clone()
        for t, step in enumerate(steps):
            expected[t, :, j] = (left / step).round().clamp(-1, 1).to(torch.int8)
            left -= expected[t, :, j] * step
        work[:, j:] -= (left / upper[j, j])[:, None] * upper[j, j:]
    assert (found != expected).float().mean() < 0.01  # a tie may fall the other way, and move what follows


def output_error(method: Ternary, weight: Tensor, x: Tensor, seen: Hessian) -> float:
    return float(((weight - method.quantize(weight, seen).dequantize()) @ x.T).square().mean())


def test_feedback_and_steps_lower_the_error_of_outputs() -> None:
    x, weight = inputs(64), matrix()
    seen, white = hessian(x), hessian(torch.eye(64) * 8)
    errors = [output_error(METHOD, weight, x, each) for each in (seen, white)]
    assert errors[0] < 0.8 * errors[1]
    by_steps = [
        output_error(replace(METHOD, format=replace(METHOD.format, steps=steps)), weight, x, seen)
        for steps in (1, 2, 4)
    ]
    assert by_steps == sorted(by_steps, reverse=True)


def test_salient_columns_are_the_surgeon_s() -> None:
    """Σ W² / [H⁻¹]_jj², with the inverse of the damped H by float64."""
    x, weight = inputs(64), matrix()
    cov = hessian(x).matrix()
    inverse = torch.linalg.inv(cov + 0.01 * cov.diagonal().mean() * torch.eye(64))
    score = weight.double().square().sum(0) / inverse.diagonal().square()
    value = METHOD.quantize(weight, hessian(x))
    assert isinstance(value, TernaryTensor)
    assert int(value.salient().sum()) == 16
    assert score[value.salient()].min() > score[~value.salient()].max()


def test_one_step_has_one_number_in_a_group() -> None:
    value = Ternary(TernarySteps(1, 0.5, 16)).quantize(matrix(), hessian(inputs(64))).dequantize()
    for group in value.unflatten(1, (-1, 16)).flatten(0, 1):
        assert len(group.abs()[group != 0].unique()) <= 1


def test_it_is_saved_and_loaded_behind_neurons(tmp_path: Path) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    report = SpikeLLM(METHOD).compress(model, Calibration(tokens))
    layers = [part for part in model.modules() if isinstance(part, CompressedLinear)]
    assert all(isinstance(layer.weight.value, TernaryTensor) for layer in layers)
    of_layers = sum(buffer.nbytes for layer in layers for buffer in layer.buffers())
    assert sum(part.nbytes for part in report.parts) == of_layers  # the size is that of what is stored
    sinq.save(model, tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(sinq.load(tmp_path / "model")(tokens).logits, model(tokens).logits)
