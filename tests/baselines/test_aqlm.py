"""AQLM: gradients against autograd, the search against all possible codes and its own definition, and that training helps."""

import itertools

import pytest
import torch

from baselines import additive_kernel
from baselines.additive_search import Problem, reference
from baselines.aqlm import AQLM, Fit
from sinq.additive import summed
from sinq.codebooks import Codebooks
from sinq.statistics import Hessian


def problem(rows: int, columns: int, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return Problem(torch.randn(rows, columns, generator=generator), inputs.T @ inputs / len(inputs) / columns)


def fit(rows: int, groups: int, count: int, vectors: int, width: int) -> Fit:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(vectors, (rows, groups, count), generator=generator)
    return Fit(codes, torch.randn(count, vectors, width, generator=generator), torch.rand(rows, generator=generator) + 0.5)


def test_gradients_are_autograds() -> None:
    it, start = problem(6, 12), fit(6, 3, 2, 5, 4)
    codebooks, scale = start.codebooks.double().requires_grad_(), start.scale.double().requires_grad_()
    error = summed(start.codes, codebooks).reshape(6, 12) * scale[:, None] - it.weight.double()
    ((error @ it.hessian.double()) * error).sum().div(6).backward()
    of_codebooks, of_scale = start.gradients(it)
    torch.testing.assert_close(of_codebooks, codebooks.grad.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_scale, scale.grad.float(), rtol=1e-4, atol=1e-4)


def test_beam_as_wide_as_all_codes_finds_the_best_of_all() -> None:
    it, start = problem(5, 4), fit(5, 2, 1, 4, 2)
    losses = []
    for pair in itertools.product(range(4), repeat=2):
        codes = torch.tensor(pair).reshape(1, 2, 1).expand(5, 2, 1)
        losses.append(it.row_losses(codes, start.codebooks, start.scale))
    for sweep in (reference, additive_kernel.sweep):
        found = sweep(it.weight, it.hessian, start.codes, start.codebooks, start.scale, 16, torch.tensor([1, 0]))
        torch.testing.assert_close(it.row_losses(found, start.codebooks, start.scale), torch.stack(losses).amin(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beam", [1, 4])
def test_kernel_chooses_as_its_definition(beam: int) -> None:
    it, start = problem(19, 24), fit(19, 3, 2, 16, 8)
    arguments = (it.weight, it.hessian, start.codes, start.codebooks, start.scale, beam, torch.tensor([2, 0, 1]))
    found, expected = additive_kernel.sweep(*arguments), reference(*arguments)
    assert (found == expected).float().mean() > 0.99  # near ties may fall either way
    before = it.row_losses(start.codes, start.codebooks, start.scale)
    assert (it.row_losses(found, start.codebooks, start.scale) <= before * (1 + 1e-5)).all()


def test_alternating_lowers_the_loss_of_the_start() -> None:
    it = problem(32, 32)
    method = AQLM(format=Codebooks(2, 4, 4), init_iterations=10, rounds=3, steps=10)
    start, (done, _) = method.start(it.weight), method._alternate(it)
    before, after = (it.row_losses(f.codes, f.codebooks, f.scale).sum() for f in (start, done))
    assert after < 0.9 * before


def test_nan_in_inputs_is_refused() -> None:
    statistic = Hessian.for_layer((4, 8), torch.device("cpu"))
    statistic.update(torch.full((3, 8), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        AQLM(format=Codebooks(1, 2, 4)).quantize(torch.randn(4, 8), statistic)


@pytest.mark.parametrize("option", ["beam", "init_iterations", "rounds", "steps"])
def test_impossible_options_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"method.{option}=0"):
        AQLM(**{option: 0})
