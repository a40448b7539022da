"""Error feedback around other methods: their format, their scales, other codes, smaller output errors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.awq import AWQ
from baselines.gptq import GPTQ, ActOrder, Toward
from baselines.gptq.curvature import estimated_damping
from baselines.gptq.solved_groups import solved
from baselines.hqq import HQQ
from baselines.rtn import RTN
from sinq import SINQ, Calibration, Grid, HalfQuadratic, Kernel, Levels, NotApplicable, SINQRefined, using
from sinq.calibration.pairs import pair
from sinq.calibration.statistics import Hessian, Inputs
from sinq.methods.scalar import NormalizingMethod
from sinq.model.linear import WeightStore
from tests.baselines.inputs import correlated, seen, weighted_error
from tests.conftest import tiny_model, tiny_tokens

EXACT = Grid(3, 16, auxiliary_bits=32)
INNER = {
    "rtn": RTN(EXACT),
    "hqq": HQQ(EXACT),
    "sinq": SINQ(EXACT),
    "sinq_hqq": SINQ(EXACT, refinement=HalfQuadratic()),
    "sinq_nf4": SINQ(replace(EXACT, bits=4, levels=Levels.nf4)),
    "sinq_2d": SINQ(replace(EXACT, tiling=2)),
    "refined": SINQRefined(EXACT),
    "refined_2d": SINQRefined(replace(EXACT, tiling=2)),
}
WITHOUT_TEXT = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)


def matrix(rows: int = 32, columns: int = 64, seed: int = 0) -> Tensor:
    """Weights (rows, columns) whose columns have different sizes."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(columns, generator=generator).mul(0.5).exp()
    return 0.02 * torch.randn(rows, columns, generator=generator) * size


def identity(width: int = 64) -> Hessian:
    return Hessian(width, torch.device("cpu")).load(
        {"sum": 4096 * torch.eye(width, dtype=torch.float64), "tokens": torch.tensor(4096)}
    )


def by_definition(method: GPTQ, weight: Tensor, hessian: Hessian) -> Tensor:
    """Ŵ (out, in) of static groups, in float64; the remaining Hessian is inverted anew for each column."""
    inner, grid = method.inner, method.grid
    (normalized,) = inner.prepare([weight], None)
    plain = inner.round(normalized)
    scale, zero = plain.scale().double(), plain.zero()
    size, table = grid.group_size, torch.arange(2**grid.bits).double()
    if grid.levels is not Levels.uniform:
        table = torch.tensor(grid.levels.value).double()
    result = torch.empty_like(weight, dtype=torch.float64)
    for row in range(len(weight)):
        t = torch.ones(weight.shape[1], dtype=torch.float64)
        if normalized.col_scale is not None:
            t = normalized.col_scale[row * len(normalized.col_scale) // len(weight)].double()
        h = hessian.matrix() * t * t[:, None]
        damped = h + method.damping * h.diagonal().mean() * torch.eye(len(h))
        left = h.diagonal().argsort(descending=True, stable=True).tolist()
        work = weight[row].double() / t
        while left:
            column = left[0]
            inverse = torch.linalg.inv(damped[left][:, left])
            s, z = scale[row, column // size], zero[row, column // size].double()
            found = (table - z) * s
            nearest = found[(found - work[column]).abs().argmin()]
            result[row, column] = nearest * t[column]
            work[left] -= (work[column] - nearest) / inverse[0, 0] * inverse[0]
            left.remove(column)
    return result


@WITHOUT_TEXT
@pytest.mark.parametrize("kernel", [Kernel.reference, Kernel.cpu])
def test_it_is_the_definition_in_the_space_of_the_normalized_matrix(
    inner: NormalizingMethod, kernel: Kernel
) -> None:
    method = GPTQ(inner, act_order=ActOrder.full)
    weight, hessian = matrix(), seen(correlated())
    with using(kernel):
        ours = method.quantize(weight, hessian).dequantize().double()
    expected = by_definition(method, weight, hessian)
    differ = ((ours - expected).abs() > 1e-4 * weight.abs().max()).double().mean()
    assert differ < 0.02  # one code at the edge between two changes those after it
    assert weighted_error(weight, ours, hessian) == pytest.approx(
        weighted_error(weight, expected, hessian), rel=0.02
    )


@WITHOUT_TEXT
@pytest.mark.parametrize("order", ActOrder)
@pytest.mark.parametrize("static", [False, True])
def test_with_independent_inputs_it_is_the_inner_method(
    inner: NormalizingMethod, order: ActOrder, static: bool
) -> None:
    weight = matrix()
    ours = GPTQ(inner, act_order=order, static_groups=static).quantize(weight, identity())
    expected = inner.quantize(weight)
    assert (ours.codes() != expected.codes()).double().mean() < 0.01  # by float rounding
    torch.testing.assert_close(ours.scale(), expected.scale(), rtol=1e-5, atol=0)
    assert ours.nbytes == expected.nbytes


@WITHOUT_TEXT
@pytest.mark.parametrize("order", ActOrder)
def test_the_output_error_is_far_below_the_inner_methods(inner: NormalizingMethod, order: ActOrder) -> None:
    weight, hessian = matrix(), seen(correlated(2000))
    ours = GPTQ(inner, act_order=order).quantize(weight, hessian).dequantize()
    plain = inner.quantize(weight).dequantize()
    assert weighted_error(weight, ours, hessian) < 0.6 * weighted_error(weight, plain, hessian)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), powers=st.lists(st.integers(-3, 3), min_size=64, max_size=64))
@pytest.mark.parametrize("name", ["sinq", "sinq_hqq", "sinq_2d", "sinq_nf4"])
def test_the_unit_of_a_column_does_not_matter(name: str, seed: int, powers: list[int]) -> None:
    """W · s with inputs x / s is the same layer: where the column scales take s up, codes are the same."""
    scale = torch.tensor([2.0**power for power in powers])
    weight, inputs = matrix(seed=seed), correlated(seed=seed)
    method = GPTQ(INNER[name], act_order=ActOrder.full)
    (one,) = method.inner.prepare([weight], None)
    other = replace(one, weight=weight * scale, col_scale=one.col_scale * scale)
    results = [
        method.feed_back(each.weight, each, method._by_tile(seen(x), each)).codes()
        for each, x in ((one, inputs), (other, inputs / scale))
    ]
    assert (results[0] != results[1]).double().mean() < 0.01  # by float rounding of H


def test_around_awq_the_channels_are_awqs() -> None:
    """Both statistics are taken in one pass, and the stored column scales are those AWQ finds alone."""
    inputs, weight = correlated(400) * torch.linspace(0.2, 5, 64), matrix()
    both = pair(Hessian, Inputs)(64, torch.device("cpu"))
    both.update(inputs)
    alone = Inputs(64, torch.device("cpu"))
    alone.update(inputs)
    awq = AWQ(RTN(EXACT), clip=False)
    method = GPTQ(awq, act_order=ActOrder.full)
    assert method.statistic is type(both)
    ours, plain = method.quantize(weight, both), awq.quantize(weight, alone)
    assert torch.equal(ours.col_scale(), plain.col_scale())  # type: ignore[arg-type]
    hessian = seen(inputs)
    assert weighted_error(weight, ours.dequantize(), hessian) < 0.8 * weighted_error(
        weight, plain.dequantize(), hessian
    )


def test_a_pair_of_statistics_is_stored_and_transformed_as_its_parts() -> None:
    kind, inputs = pair(Hessian, Inputs), correlated(40)
    assert kind is pair(Hessian, Inputs)
    both, parts = (
        kind(64, torch.device("cpu")),
        [Hessian(64, torch.device("cpu")), Inputs(64, torch.device("cpu"))],
    )
    for statistic in (both, *parts):
        statistic.update(inputs)
    read = kind(64, torch.device("cpu")).load(both.tensors())
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))[0]
    for found, expected in zip(read.parts, parts, strict=True):
        assert found.tokens == read.tokens == 40
        for name, tensor in expected.tensors().items():
            assert torch.equal(found.tensors()[name], tensor)
    for found, expected in zip(both.transformed(rotation).parts, parts, strict=True):
        for name, tensor in expected.transformed(rotation).tensors().items():
            assert torch.equal(found.tensors()[name], tensor)


def test_few_tokens_are_in_the_report() -> None:
    assert GPTQ(RTN(EXACT)).quantize(matrix(), seen(correlated(20))).notes["hessian_rank"] == 20
    assert "hessian_rank" not in GPTQ(RTN(EXACT)).quantize(matrix(), seen(correlated(64))).notes


def test_estimated_damping_falls_with_tokens_and_ignores_units() -> None:
    """Of independent inputs correlations are only noise: they shrink to almost none."""
    generator = torch.Generator().manual_seed(0)
    few, many = (estimated_damping(seen(correlated(n)).matrix(), n) for n in (100, 10_000))
    assert 0 < 50 * many < 100 * few
    noise = seen(torch.randn(500, 64, generator=generator)).matrix()
    assert estimated_damping(noise, 500) > 5
    scaled = seen(correlated(100) * torch.logspace(-3, 3, 64)).matrix()
    assert estimated_damping(scaled, 100) == pytest.approx(few, rel=1e-3)


@pytest.mark.parametrize("damping", [None, 0.1])
@pytest.mark.parametrize("toward", Toward)
def test_damping_toward_either_is_better_than_the_inner_method_on_held_out_inputs(
    toward: Toward, damping: float | None
) -> None:
    inputs, weight = correlated(4000), matrix()
    ours = GPTQ(RTN(EXACT), damping, toward, act_order=ActOrder.full).quantize(weight, seen(inputs[:60]))
    unseen, plain = seen(inputs[60:]), RTN(EXACT).quantize(weight)
    assert weighted_error(weight, ours.dequantize(), unseen) < weighted_error(
        weight, plain.dequantize(), unseen
    )


def test_a_model_is_compressed_and_has_the_inner_methods_format() -> None:
    model = tiny_model("llama")
    method = GPTQ(SINQRefined(Grid(3, 32)), act_order=ActOrder.full)
    report = method.compress(model, Calibration(tiny_tokens(4)))
    assert report.method == "GPTQ 3-bit g32"
    stored = [module.value for module in model.modules() if isinstance(module, WeightStore)]
    assert len(stored) == len(report.parts)
    assert all(value.col_scale() is not None for value in stored)


@pytest.mark.parametrize("name", ["rtn", "sinq", "refined"])
def test_it_is_near_the_best_of_all_codes_on_tiny_layers(name: str) -> None:
    """Six columns of 2 bits: all 4,096 codes of a row, with the scales the method has."""
    grid, columns = Grid(2, 6, auxiliary_bits=32), 6
    inner = replace(INNER[name], grid=grid)
    weight, hessian = matrix(12, columns), seen(correlated(200, 8)[:, :columns])
    ours = GPTQ(inner, damping=0.0, act_order=ActOrder.full).quantize(weight, hessian)
    codes = torch.cartesian_prod(*[torch.arange(4.0)] * columns)
    found, plain = [], inner.quantize(weight).dequantize()
    for row in range(len(weight)):
        every = (codes - ours.zero()[row]) * ours.scale()[row]
        every = every if ours.col_scale() is None else every * ours.col_scale()[0]
        error = (weight[row] - every).double()
        best = ((error @ hessian.matrix()) * error).sum(1).min().item()
        one = slice(row, row + 1)
        reached, nearest = (
            weighted_error(weight[one], each[one], hessian) for each in (ours.dequantize(), plain)
        )
        assert reached >= best * (1 - 1e-5)
        found.append((best, reached, nearest))
    best, reached, nearest = (sum(column) for column in zip(*found, strict=True))
    assert reached - best < 0.5 * (nearest - best)


def test_solved_groups_are_the_least_squares_of_a_row() -> None:
    """Two groups: after many sweeps, the four numbers of each row are those of one dense problem."""
    weight, hessian = matrix(6, 16), seen(correlated(200, 16)).matrix()
    levels = torch.randint(4, (6, 16), generator=torch.Generator().manual_seed(0)).float()
    start = torch.full((6, 2), 0.02), torch.full((6, 2), 1.5)
    scale, zero = solved(weight, levels, *start, hessian.float(), 200)
    root = torch.linalg.cholesky(hessian).T
    for row in range(6):
        basis = torch.zeros(16, 4, dtype=torch.float64)
        for group in range(2):
            part = slice(8 * group, 8 * group + 8)
            basis[part, group], basis[part, 2 + group] = levels[row, part].double(), 1.0
        best = torch.linalg.lstsq(root @ basis, root @ weight[row].double()).solution
        if (best[:2] <= 0).any():
            assert torch.equal(scale[row], start[0][row])  # a row without positive scales keeps its own
            continue
        torch.testing.assert_close(scale[row].double(), best[:2], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(-(scale * zero)[row].double(), best[2:], rtol=1e-3, atol=1e-6)


@WITHOUT_TEXT
@pytest.mark.parametrize("order", ActOrder)
def test_solving_groups_again_lowers_the_error_on_the_inputs(
    inner: NormalizingMethod, order: ActOrder
) -> None:
    weight, hessian = matrix(), seen(correlated(2000))
    before, after = (
        GPTQ(inner, act_order=order, solve_groups=sweeps).quantize(weight, hessian).dequantize()
        for sweeps in (0, 2)
    )
    assert weighted_error(weight, after, hessian) < weighted_error(weight, before, hessian)


@pytest.mark.parametrize("grid", [Grid(3, 16, symmetric=True), Grid(3, 16, auxiliary_bits=8)])
def test_solving_groups_needs_fractional_zeros(grid: Grid) -> None:
    with pytest.raises(NotApplicable, match=r"method\.solve_groups=1 solves for fractional zero-points"):
        GPTQ(RTN(grid), solve_groups=1)
