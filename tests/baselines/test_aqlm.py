"""AQLM: gradients against autograd, search against all codes and its definition, gains of training."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from baselines.aqlm import AQLM, cpu
from baselines.aqlm.beam_search import Problem, search, sweep
from baselines.aqlm.kmeans import kmeans, residual_kmeans
from baselines.aqlm.method import Fit
from sinq import Calibration, Context, Layers, NotApplicable, OnMisfit, Tuned
from sinq.calibration.statistics import Hessian
from sinq.formats.additive import summed
from sinq.formats.codebooks import Codebooks
from tests.conftest import tiny_model, tiny_tokens


def problem(rows: int, columns: int, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    return Problem(torch.randn(rows, columns, generator=generator), inputs.T @ inputs / len(inputs) / columns)


def fit(rows: int, groups: int, count: int, vectors: int, width: int) -> Fit:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(vectors, (rows, groups, count), generator=generator)
    return Fit(
        codes,
        torch.randn(count, vectors, width, generator=generator),
        torch.rand(rows, generator=generator) + 0.5,
    )


def explicit(case: Problem, start: Fit, beam: int, order: list[int]) -> Tensor:
    """Sweep in loops and float64, with the whole loss of a row for every vector of every hypothesis."""
    weight, hessian, codebooks = case.weight.double(), case.hessian.double(), start.codebooks.double()

    def loss(r: int, codes: Tensor) -> float:
        total = sum(codebooks[m, codes[:, m]] for m in range(len(codebooks)))
        error = start.scale[r].double() * total.flatten() - weight[r]
        return (error @ hessian @ error).item()

    best = []
    for r in range(len(weight)):
        hypotheses = [start.codes[r]]
        for j in order:
            for m in range(len(codebooks)):
                found = []
                for codes in hypotheses:
                    for c in range(codebooks.shape[1]):
                        other = codes.clone()
                        other[j, m] = c
                        found.append((loss(r, other), other))
                hypotheses = [codes for _, codes in sorted(found, key=lambda pair: pair[0])[:beam]]
        best.append(hypotheses[0])
    return torch.stack(best)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_sweep_is_the_one_in_loops(beam: int) -> None:
    case, start = problem(6, 16), fit(6, 4, 2, 4, 4)
    for visit in (sweep.definition, cpu.sweep):
        found = visit(
            case.weight,
            case.hessian,
            start.codes,
            start.codebooks,
            start.scale,
            beam,
            torch.tensor([2, 0, 3, 1]),
        )
        assert torch.equal(found, explicit(case, start, beam, [2, 0, 3, 1]))


def test_a_wider_beam_finds_no_worse_codes() -> None:
    case, start, order = problem(64, 32), fit(64, 4, 2, 16, 8), torch.tensor([1, 3, 0, 2])
    losses = []
    for beam in (1, 4):
        found = cpu.sweep(case.weight, case.hessian, start.codes, start.codebooks, start.scale, beam, order)
        losses.append(case.row_losses(found, start.codebooks, start.scale).sum())
    assert losses[1] < losses[0]


def test_no_row_is_worse_after_any_search() -> None:
    case, now, generator = problem(20, 32), fit(20, 4, 2, 16, 8), torch.Generator().manual_seed(0)
    before = case.row_losses(now.codes, now.codebooks, now.scale)
    for _ in range(5):
        codes, losses, _ = search(case, now.codes, now.codebooks, now.scale, 2, generator)
        error = (
            summed(codes, now.codebooks.double()).reshape(20, 32) * now.scale[:, None].double() - case.weight
        )
        torch.testing.assert_close(
            losses, ((error @ case.hessian.double()) * error).sum(1), rtol=1e-4, atol=1e-5
        )
        assert (losses <= before).all()
        now, before = replace(now, codes=codes), losses


def test_gradients_are_autograds() -> None:
    case, start = problem(6, 12), fit(6, 3, 2, 5, 4)
    codebooks, scale = start.codebooks.double().requires_grad_(), start.scale.double().requires_grad_()
    error = summed(start.codes, codebooks).reshape(6, 12) * scale[:, None] - case.weight.double()
    ((error @ case.hessian.double()) * error).sum().div(6).backward()
    of_codebooks, of_scale = start.gradients(case)
    torch.testing.assert_close(of_codebooks, codebooks.grad.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_scale, scale.grad.float(), rtol=1e-4, atol=1e-4)


def test_beam_as_wide_as_all_codes_finds_the_best_of_all() -> None:
    case, start = problem(5, 4), fit(5, 2, 1, 4, 2)
    losses = []
    for pair in itertools.product(range(4), repeat=2):
        codes = torch.tensor(pair).reshape(1, 2, 1).expand(5, 2, 1)
        losses.append(case.row_losses(codes, start.codebooks, start.scale))
    for visit in (sweep.definition, cpu.sweep):
        found = visit(
            case.weight, case.hessian, start.codes, start.codebooks, start.scale, 16, torch.tensor([1, 0])
        )
        torch.testing.assert_close(
            case.row_losses(found, start.codebooks, start.scale),
            torch.stack(losses).amin(0),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("beam", [1, 4])
def test_kernel_chooses_as_its_definition(beam: int) -> None:
    case, start = problem(19, 24), fit(19, 3, 2, 16, 8)
    arguments = (
        case.weight,
        case.hessian,
        start.codes,
        start.codebooks,
        start.scale,
        beam,
        torch.tensor([2, 0, 1]),
    )
    found, expected = cpu.sweep(*arguments), sweep.definition(*arguments)
    assert (found == expected).float().mean() > 0.99  # near ties may fall either way
    before = case.row_losses(start.codes, start.codebooks, start.scale)
    assert (case.row_losses(found, start.codebooks, start.scale) <= before * (1 + 1e-5)).all()


def test_alternating_lowers_the_loss_of_the_start() -> None:
    case = problem(32, 32)
    method = AQLM(format=Codebooks(2, 4, 4), init_iterations=10, rounds=3, steps=10)
    start, (done, _) = method.start(case.weight), method._alternate(case)
    before, after = (case.row_losses(f.codes, f.codebooks, f.scale).sum() for f in (start, done))
    assert after < 0.9 * before


@pytest.mark.parametrize("factor", [2.0**-6, 3e4])
def test_the_result_follows_the_scale_of_the_weight(factor: float) -> None:
    case, method = problem(32, 32), AQLM(format=Codebooks(2, 4, 4), init_iterations=10, rounds=2, steps=10)
    statistic = Hessian.for_layer((32, 32), torch.device("cpu"))
    statistic.update(torch.randn(100, 32, generator=torch.Generator().manual_seed(2)))
    plain, scaled = (method.quantize(w, statistic).dequantize() for w in (case.weight, case.weight * factor))
    assert (scaled / factor - plain).norm() < 1e-3 * plain.norm()


def test_inputs_never_seen_are_told_of_and_what_is_minimized_is_the_weights_error() -> None:
    weight = problem(32, 32).weight
    value = AQLM(format=Codebooks(2, 4, 4), init_iterations=10, rounds=2, steps=10).quantize(
        weight, Hessian.for_layer((32, 32), weight.device)
    )
    assert value.notes["hessian_missing"] == 1
    assert (value.dequantize() - weight).norm() < 0.5 * weight.norm()


def test_kmeans_ends_where_every_centroid_is_the_mean_of_its_points() -> None:
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    centroids, codes = kmeans(points, 8, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(codes, torch.cdist(points.double(), centroids.double()).argmin(1))
    means = torch.stack([points[codes == c].mean(0) for c in range(8)])
    torch.testing.assert_close(centroids, means, rtol=1e-4, atol=1e-4)


def test_fewer_groups_than_vectors_are_stored_without_error() -> None:
    points = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    codebooks, codes = residual_kmeans(points, 2, 16, 10, 0)
    torch.testing.assert_close(summed(codes, codebooks), points)


def test_blocks_cannot_be_tuned_behind_a_dense_model() -> None:
    method = Tuned(AQLM(format=Codebooks(4, 4, 4)))
    dense_inputs = Calibration(tiny_tokens(), sequential=False)
    with pytest.raises(
        NotApplicable,
        match=r"Tuned works on each block behind .* calibration\.sequential=true, or a method of single",
    ):
        method.compress(tiny_model("llama"), dense_inputs)


def test_codebooks_that_dwarf_layers_are_not_applicable() -> None:
    with pytest.raises(
        NotApplicable,
        match=r"codebooks=1 of bits_per_codebook=16 weigh more than 1 of the codes of 14 layers"
        r".*up to bits_per_codebook=",
    ):
        AQLM(format=Codebooks(1, 16, 8)).compress(tiny_model("llama"), Calibration(tiny_tokens()))


def test_what_does_not_fit_can_be_shrunk() -> None:
    method = AQLM(format=Codebooks(2, 6, 4), init_iterations=2, rounds=1, steps=1)
    report = method.compress(
        tiny_model("qwen3-tied"), Calibration(tiny_tokens()), Context(Layers(on_misfit=OnMisfit.shrink))
    )
    shrunk = {
        layer.name.split(".")[-1]: layer.decided.get("shrunk_bits_per_codebook") for layer in report.parts
    }
    assert shrunk["gate_proj"] is None
    assert shrunk["k_proj"] is not None
    assert shrunk["k_proj"] < 6


def test_nan_in_inputs_is_refused() -> None:
    statistic = Hessian.for_layer((4, 8), torch.device("cpu"))
    statistic.load(
        {"sum": torch.full((8, 8), torch.nan), "tokens": torch.tensor(3)}
    )  # sums of finite inputs may overflow
    with pytest.raises(ValueError, match="NaN"):
        AQLM(format=Codebooks(1, 2, 4)).quantize(torch.randn(4, 8), statistic)


@pytest.mark.parametrize("option", ["beam", "init_iterations", "rounds", "steps"])
def test_impossible_options_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"method.{option}=0"):
        AQLM(**{option: 0})
