"""MG-PTQ: budget against brute force, graph and network against their definitions, limits against GPTQ."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.gptq import GPTQ, ActOrder
from baselines.mgptq import MGPTQ
from baselines.mgptq import budget as allocation
from baselines.mgptq import graph as column_graph
from baselines.mgptq.method import Allocator
from baselines.mgptq.network import ColumnGNN, Task, Training, trained_logits
from baselines.rtn import RTN
from sinq import Calibration, Grid, Kernel, Levels, NotApplicable, using
from sinq.calibration.statistics import Hessian
from sinq.formats.mixed_columns import MixedColumns
from tests.baselines.inputs import correlated, seen, weighted_error
from tests.conftest import tiny_model, tiny_tokens

GRID = Grid(2, 16)
WIDTHS = torch.tensor([1, 2, 3, 4])
SHORT = Training(steps=20, hidden=16)
ALLOCATORS = list(Allocator)
LEARNED = [Allocator.gnn, Allocator.mlp]


def matrix(rows: int = 40, columns: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def uneven(columns: int = 64) -> Hessian:
    """Of inputs that depend on each other, some of them much larger than others."""
    return seen(
        correlated(400, columns)
        * torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=torch.Generator().manual_seed(3))]
    )


def dealt(value: object) -> Tensor:
    assert isinstance(value, MixedColumns)
    return value.bits()


# --- The budget ---


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 6), budget=st.integers(0, 18))
def test_the_budget_is_met_to_the_last_bit_and_near_the_best(seed: int, columns: int, budget: int) -> None:
    """Compare with all assignments: the gap is at most one partly paid upgrade of a column, the last."""
    allowed = min(columns + budget, 4 * columns)
    cost = (
        torch.rand(columns, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .sort(1, descending=True)
        .values
    )
    index = allocation.within(cost, WIDTHS, allowed / columns)
    assert int(WIDTHS[index].sum()) <= allowed
    assert int(WIDTHS[index].sum()) == allowed  # more bits always cost less here, and steps are of one bit
    tried = (torch.tensor(each) for each in product(range(4), repeat=columns))
    best = min(cost.gather(1, each[:, None]).sum().item() for each in tried if WIDTHS[each].sum() <= allowed)
    found = cost.gather(1, index[:, None]).sum().item()
    assert best - 1e-12 <= found <= best + (cost[:, 0] - cost[:, -1]).max().item()


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 6), budget=st.integers(0, 18))
def test_where_each_further_bit_gains_less_it_is_the_best(seed: int, columns: int, budget: int) -> None:
    allowed = min(columns + budget, 4 * columns)
    gains = (
        torch.rand(columns, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .sort(1, descending=True)
        .values
    )
    cost = -torch.cat([torch.zeros(columns, 1, dtype=torch.float64), gains.cumsum(1)], dim=1)
    index = allocation.within(cost, WIDTHS, allowed / columns)
    # greedy is exact on concave gains
    best = gains.flatten().sort(descending=True).values[: allowed - columns].sum()
    assert cost.gather(1, index[:, None]).sum().item() == pytest.approx(-best.item(), abs=1e-12)


def test_a_cost_that_rises_with_bits_leaves_none_of_the_budget_unspent() -> None:
    index = allocation.within(torch.arange(4.0).repeat(5, 1), WIDTHS, 2.6)
    assert int(WIDTHS[index].sum()) == 13


def test_what_rounding_a_column_costs_is_its_definition() -> None:
    errors = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    factor = torch.rand(5, 5).triu() + torch.eye(5)
    table = allocation.separable(errors, factor.double())
    for j in range(5):
        for b in range(4):
            assert table[j, b].item() == pytest.approx(
                sum(errors[b, i, j].item() ** 2 for i in range(3)) / factor[j, j].item() ** 2
            )


@pytest.mark.parametrize("average", [1.0, 1.7, 2.0, 2.5, 4.0])
@pytest.mark.parametrize("allocator", [a for a in Allocator if a is not Allocator.uniform])
def test_mean_bits_are_the_budget_whatever_deals_them_out(allocator: Allocator, average: float) -> None:
    value = MGPTQ(GRID, average, allocator=allocator, training=SHORT).quantize(matrix(), uneven())
    assert average - 1 / 64 < dealt(value).double().mean().item() <= average
    assert value.bits_per_weight == pytest.approx(
        dealt(value).double().mean().item() + 32 / 16 + 2 / 40, abs=0.02
    )


def test_all_allocators_store_the_same_bytes() -> None:
    stored = {MGPTQ(GRID, allocator=a, training=SHORT).quantize(matrix(), uneven()).nbytes for a in Allocator}
    assert len(stored) == 1


# --- The graph ---


@pytest.mark.parametrize("neighbours", [None, 1, 5])
def test_the_graph_is_symmetric_with_eigenvalues_up_to_1(neighbours: int | None) -> None:
    edges = column_graph.adjacency(GPTQ(RTN(GRID)).curvature(uneven()).factor, neighbours).double()
    assert torch.equal(edges, edges.T)
    assert (edges.diagonal() > 0).all()
    eigenvalues = torch.linalg.eigvalsh(edges)
    assert eigenvalues.abs().max().item() == pytest.approx(1, abs=1e-5)


def test_its_edges_are_their_formula() -> None:
    factor = torch.tensor([[2.0, -1.0, 0.0], [0.0, 1.0, 4.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    raw = torch.tensor([[2.0, 0.5, 0.0], [0.5, 2.0, 4.0], [0.0, 4.0, 2.0]], dtype=torch.float64)
    degrees = torch.tensor([2.5, 6.5, 6.0], dtype=torch.float64)
    torch.testing.assert_close(
        column_graph.adjacency(factor), (raw / (degrees[:, None] * degrees).sqrt()).float()
    )


def test_few_neighbours_leave_few_edges() -> None:
    factor = GPTQ(RTN(GRID)).curvature(uneven()).factor
    kept = column_graph.adjacency(factor, 4) > 0
    assert kept.sum(1).amin() >= 4
    assert 64 * 4 <= kept.sum() <= 64 * 8 < (column_graph.adjacency(factor) > 0).sum()


def test_features_do_not_depend_on_the_size_of_the_weights() -> None:
    weight, curvature = matrix(), GPTQ(RTN(GRID)).curvature(uneven())
    one, other = (
        column_graph.features(
            scale * weight, curvature.hessian.diagonal(), curvature.factor, torch.Generator().manual_seed(0)
        )
        for scale in (1, 1000)
    )
    assert one.shape == (64, 5 + column_graph.SKETCH)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_column_of_zeros_has_finite_features() -> None:
    weight, curvature = matrix(), GPTQ(RTN(GRID)).curvature(uneven())
    for columns in ([3], list(range(64))):
        weight[:, columns] = 0
        found = column_graph.features(
            weight, curvature.hessian.diagonal(), curvature.factor, torch.Generator()
        )
        assert torch.isfinite(found).all()


# --- The network ---


def task(hessian: Tensor, seed: int = 0) -> Task:
    errors = matrix(8, 64, seed) / torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None]
    return Task(errors, hessian.float(), WIDTHS.float(), 2.0)


def trained(hessian: Tensor, edges: Tensor | None, options: Training = SHORT) -> tuple[Tensor, list[float]]:
    features = torch.randn(64, 37, generator=torch.Generator().manual_seed(1))
    return trained_logits(task(hessian), edges, features, options, torch.Generator().manual_seed(0))


def test_it_does_not_know_in_which_order_columns_come() -> None:
    generator = torch.Generator().manual_seed(0)
    network = ColumnGNN.random(37, 16, 4, generator, torch.device("cpu"))
    edges = column_graph.adjacency(GPTQ(RTN(GRID)).curvature(uneven()).factor)
    features = torch.randn(64, 37, generator=generator)
    order = torch.randperm(64, generator=generator)
    with torch.no_grad():
        expected = network.logits(edges, features)[order]
        torch.testing.assert_close(
            network.logits(edges[order][:, order], features[order]), expected, rtol=1e-4, atol=1e-5
        )
        # edges are part of it
        assert not torch.allclose(network.logits(edges, features[order]), expected, atol=1e-2)


def test_it_is_its_formula_in_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    network = ColumnGNN.random(3, 4, 2, generator, torch.device("cpu"))
    edges, features = torch.rand(5, 5, generator=generator), torch.randn(5, 3, generator=generator)
    first, second, last = (parameter.detach() for parameter in network.parameters())
    inner = [torch.relu(sum(edges[j, k] * features[k] for k in range(5)) @ first) for j in range(5)]
    outer = [torch.relu(sum(edges[j, k] * inner[k] for k in range(5)) @ second) + inner[j] for j in range(5)]
    torch.testing.assert_close(
        network.logits(edges, features).detach(), torch.stack([row @ last for row in outer])
    )


def test_without_edges_a_column_sees_only_itself() -> None:
    network = ColumnGNN.random(37, 16, 4, torch.Generator().manual_seed(0), torch.device("cpu"))
    features = matrix(64, 37)
    alone = torch.cat([network.logits(None, features[j : j + 1]) for j in range(64)])
    torch.testing.assert_close(network.logits(None, features), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.logits(torch.eye(64), features), alone, rtol=1e-4, atol=1e-5)


def test_the_loss_and_its_gradient_are_those_of_the_trace() -> None:
    work = task(uneven().matrix())
    chosen = (
        torch.nn.functional.one_hot(torch.randint(4, (64,), generator=torch.Generator().manual_seed(0)), 4)
        .double()
        .requires_grad_()
    )
    error = sum(work.errors[b].double() @ torch.diag(chosen[:, b]) for b in range(4))
    expected = torch.trace(error @ work.hessian.double() @ error.T)  # type: ignore[union-attr, operator]
    expected.backward()  # type: ignore[no-untyped-call]
    found, slope = work.loss(chosen.detach().float())
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    tolerance = 1e-3 * chosen.grad.abs().max().item()  # type: ignore[union-attr]
    torch.testing.assert_close(slope.double(), chosen.grad, rtol=1e-3, atol=tolerance)


def test_gradients_reach_the_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[ColumnGNN, list[Tensor]]] = []
    random = ColumnGNN.random

    def kept(*arguments: object) -> ColumnGNN:
        network = random(*arguments)  # type: ignore[arg-type]
        made.append((network, [parameter.detach().clone() for parameter in network.parameters()]))
        return network

    monkeypatch.setattr(ColumnGNN, "random", kept)
    trained(uneven().matrix(), torch.eye(64), replace(SHORT, steps=1))
    [(network, before)] = made
    assert all((parameter != old).any() for parameter, old in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("graph", [True, False])
def test_training_lowers_the_loss(graph: bool) -> None:
    hessian = uneven()
    edges = column_graph.adjacency(GPTQ(RTN(GRID)).curvature(hessian).factor) if graph else None
    _, losses = trained(hessian.matrix(), edges, Training(steps=150))
    assert sum(losses[-10:]) / 10 < 0.8 * losses[0]


def test_temperature_falls_geometrically() -> None:
    options = Training(steps=3, temperature=(1.0, 0.01))
    assert [options.temperature_at(step) for step in range(3)] == pytest.approx([1.0, 0.1, 0.01])
    assert Training(steps=1).temperature_at(0) == 1.0


def test_what_channels_have_to_do_with_each_other_changes_the_bits() -> None:
    """Two Hessians share a diagonal; without off-diagonal losses and edges, the problems would be equal."""
    full = uneven().matrix()
    plain = torch.diag(full.diagonal())
    one, other = (
        dealt(
            MGPTQ(GRID, training=SHORT).quantize(
                matrix(), Hessian(64, torch.device("cpu")).load({"sum": hessian, "tokens": torch.tensor(1)})
            )
        )
        for hessian in (full, plain)
    )
    assert not torch.equal(one, other)


# --- The method ---


@pytest.mark.parametrize("order", ActOrder)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_one_width_for_all_is_gptq_code_for_code(bits: int, order: ActOrder) -> None:
    grid = Grid(bits, 16)
    plain = GPTQ(RTN(grid), act_order=order).quantize(matrix(), uneven())
    for method in (
        MGPTQ(grid, allocator=Allocator.uniform, act_order=order),
        MGPTQ(grid, widths=(bits,), training=SHORT, act_order=order),
    ):
        value = method.quantize(matrix(), uneven())
        assert torch.equal(value.codes(), plain.codes())  # type: ignore[attr-defined]
        assert torch.equal(value.dequantize(), plain.dequantize())
        assert value.notes == plain.notes


@pytest.mark.parametrize("order", ActOrder)
@pytest.mark.parametrize("allocator", [Allocator.greedy, Allocator.random])
def test_the_kernel_rounds_as_the_loop(allocator: Allocator, order: ActOrder) -> None:
    method = MGPTQ(GRID, 2.3, allocator=allocator, act_order=order)
    with using(Kernel.reference):
        expected = method.quantize(matrix(), uneven())
    with using(Kernel.cpu):
        found = method.quantize(matrix(), uneven())
    assert expected.state_dict().keys() == found.state_dict().keys()
    assert all(
        torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items()
    )


def test_each_error_is_spread_over_the_later_columns_as_defined() -> None:
    """GPTQ with bits per column, without lazy blocks and Cholesky, in float64.

    After each column, the Hessian of the remaining columns is inverted anew.
    """
    grid, weight, hessian = Grid(2, 16, auxiliary_bits=32), matrix(8), seen(correlated())
    method = MGPTQ(grid, allocator=Allocator.random)
    curvature = method.gptq.curvature(hessian)
    levels = method.levels(method.bits(weight, curvature))
    value = method.quantize(weight, hessian)
    damped = hessian.matrix() + 0.01 * hessian.matrix().diagonal().mean() * torch.eye(64, dtype=torch.float64)
    work, codes, left = weight.double(), torch.empty_like(weight, dtype=torch.uint8), curvature.order.tolist()
    for column in curvature.order.tolist():
        inverse = torch.linalg.inv(damped[left][:, left])
        scale, zero = value.scale()[:, column // 16], value.zero()[:, column // 16]  # type: ignore[attr-defined]
        places = levels.position(torch.arange(2 ** int(levels.bits[column])), column)
        target = work[:, column] / scale + zero
        codes[:, column] = (target[:, None] - places).abs().argmin(1)
        error = (work[:, column] - (places[codes[:, column].long()] - zero) * scale) / inverse[0, 0]
        work[:, left] -= error[:, None] * inverse[0]
        left.remove(column)
    assert "rows_rounded" not in value.notes
    assert torch.equal(value.codes(), codes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_it_is_the_same_every_time(allocator: Allocator) -> None:
    one, other = (
        MGPTQ(GRID, allocator=allocator, training=SHORT).quantize(matrix(), uneven()) for _ in range(2)
    )
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("allocator", [Allocator.gnn, Allocator.mlp, Allocator.random])
def test_another_seed_deals_otherwise(allocator: Allocator) -> None:
    one, other = (
        dealt(MGPTQ(GRID, allocator=allocator, training=SHORT, seed=seed).quantize(matrix(), uneven()))
        for seed in (0, 1)
    )
    assert not torch.equal(one, other)


def test_greedy_and_uniform_know_no_seed() -> None:
    for allocator in (Allocator.greedy, Allocator.uniform):
        one, other = (
            dealt(MGPTQ(GRID, allocator=allocator, seed=seed).quantize(matrix(), uneven())) for seed in (0, 1)
        )
        assert torch.equal(one, other)


def test_errors_at_each_width_are_those_of_rounding_everything_to_it() -> None:
    weight, method = matrix(), MGPTQ(GRID)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    errors = method.errors(weight[:, order], order)
    exact = RTN(replace(GRID, auxiliary_bits=32)).quantize(weight, None).dequantize()
    torch.testing.assert_close(errors[1], (weight - exact)[:, order], rtol=0, atol=1e-5)
    assert (errors.square().sum((1, 2)).diff() < 0).all()


def test_orders_of_quality_on_unequal_channels() -> None:
    """Errors fall from RTN 2 to GPTQ 2, bits by the separable error, GPTQ 3; chance is worse than GPTQ 2."""
    weight, hessian = matrix(64), uneven()

    def error(method: GPTQ | RTN | MGPTQ) -> float:
        return weighted_error(weight, method.quantize(weight, hessian).dequantize(), hessian)

    plain = error(GPTQ(RTN(GRID), act_order=ActOrder.full))
    greedy, chance = (error(MGPTQ(GRID, allocator=a)) for a in (Allocator.greedy, Allocator.random))
    assert error(GPTQ(RTN(Grid(3, 16)), act_order=ActOrder.full)) < greedy < plain < error(RTN(GRID))
    assert plain < chance


@pytest.mark.parametrize("allocator", [Allocator.gnn, Allocator.mlp, Allocator.greedy, Allocator.random])
def test_channels_never_active_take_the_smallest_width(allocator: Allocator) -> None:
    inputs = correlated(300)
    inputs[:, [3, 50]] = 0
    value = MGPTQ(GRID, allocator=allocator, training=SHORT).quantize(matrix(), seen(inputs))
    assert dealt(value)[[3, 50]].tolist() == [1, 1]
    assert dealt(value).sum() == 128
    assert value.notes["dead_columns"] == 2


def test_a_whole_model_has_its_budget_in_every_layer() -> None:
    model = tiny_model("llama")
    report = MGPTQ(Grid(2, 32), training=replace(SHORT, steps=3)).compress(model, Calibration(tiny_tokens(2)))
    for layer in report.parts:
        weights = layer.dense_parameters
        # bytes are whole, hence the tolerance
        expected = 2 + 32 / 32 + 2 / layer.shape[0]
        assert 8 * layer.nbytes / weights == pytest.approx(expected, abs=64 / weights)


def test_a_whole_model_at_one_width_is_that_of_gptq_where_both_multiply_alike() -> None:
    """Later blocks see earlier outputs; the product of the format of `GPTQ` differs in its last digits."""
    models = tiny_model("llama"), tiny_model("llama")
    with using(Kernel.reference):
        gptq = GPTQ(RTN(Grid(2, 32)), act_order=ActOrder.full)
        mgptq = MGPTQ(Grid(2, 32), allocator=Allocator.uniform)
        for model, method in zip(models, (gptq, mgptq), strict=True):
            method.compress(model, Calibration(tiny_tokens(2)))
        one, other = (model(tiny_tokens(2)).logits for model in models)
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"widths": (1, 2, 3, 4, 5)},
            r"method\.widths=\[1, 2, 3, 4, 5\] is not possible; it must be one to four of",
        ),
        ({"widths": (2, 7)}, r"method\.widths=\[2, 7\] is not possible"),
        ({"widths": ()}, r"method\.widths=\[\] is not possible"),
        ({"average_bits": 4.5}, r"method\.average_bits=4\.5 is not possible; it must be within"),
        ({"average_bits": 0.5}, r"method\.average_bits=0\.5 is not possible"),
        ({"average_bits": 2.5, "allocator": Allocator.uniform}, "is not possible with allocator=uniform"),
        ({"neighbours": 0}, r"method\.neighbours=0 is not possible"),
        ({"damping": -1.0}, r"method\.damping=-1\.0 is not possible"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MGPTQ(GRID, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"hidden": 0},
        {"rows": 0},
        {"learning_rate": 0.0},
        {"budget_weight": -1.0},
        {"temperature": (1.0, 0.0)},
    ],
)
def test_training_out_of_range_is_named(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"training\.{next(iter(options))}=.* is not possible"):
        Training(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [Grid(4, levels=Levels.nf4), Grid(2, symmetric=True)])
def test_it_needs_a_range_with_a_zero(grid: Grid) -> None:
    with pytest.raises(NotApplicable, match="needs levels=uniform and symmetric=false"):
        MGPTQ(grid)
