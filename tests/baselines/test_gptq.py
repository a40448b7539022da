"""GPTQ: against GPTQModel on fixed matrices, against its definition column by column, and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.gptq import GPTQ, ActOrder
from baselines.gptq.curvature import Toward, triangular_root
from baselines.rtn import RTN
from sinq import Calibration, Grid, Levels, assign, choose
from sinq.calibration.statistics import Hessian
from tests.baselines.inputs import correlated, seen, weighted_error
from tests.conftest import needs_golden, tiny_model, tiny_tokens
from tests.golden import golden_entries, output_error, read_golden

GRID = Grid(bits=3, group_size=16)


@needs_golden
@pytest.mark.parametrize(("file", "name"), golden_entries("gptq"))
def test_no_worse_than_the_package_on_held_out_inputs(file: str, name: str) -> None:
    """With the package's own settings: damping 0.05, and group-aware order where it is not `desc_act`."""
    golden = read_golden(file)
    kind, bits, group, _ = name.split(".")
    order = ActOrder.full if kind == "gptq_desc" else ActOrder.groups
    method = GPTQ(RTN(Grid(int(bits[1:]), int(group[1:]))), damping=0.05, act_order=order)
    ours = method.quantize(golden["weight"], seen(golden["activations"].float()))
    assert output_error(golden, ours.dequantize()) <= 1.01 * output_error(golden, golden[name])


@pytest.mark.parametrize("order", ActOrder)
def test_each_error_is_spread_over_the_later_columns_as_defined(order: ActOrder) -> None:
    """The published algorithm without lazy blocks and Cholesky, in float64.

    After each column, the Hessian of the remaining columns is inverted anew.
    """
    generator = torch.Generator().manual_seed(1)
    weight, hessian = torch.randn(8, 64, generator=generator), seen(correlated())
    method = GPTQ(RTN(Grid(3, 16, auxiliary_bits=32)), damping=0.01, block=32, act_order=order)
    columns = method._order(hessian.matrix().diagonal()).tolist()
    damped = hessian.matrix() + 0.01 * hessian.matrix().diagonal().mean() * torch.eye(64, dtype=torch.float64)
    work, codes = weight.double(), torch.empty_like(weight, dtype=torch.uint8)
    scale, zero = choose(weight, method.grid)
    left = list(columns)
    for column in columns:
        group = column // 16
        if order is not ActOrder.full and len(left) % 16 == 0:
            found = choose(work[:, 16 * group : 16 * group + 16].float(), method.grid)
            scale[:, group], zero[:, group] = (x[:, 0] for x in found)  # type: ignore[index]
        inverse = torch.linalg.inv(damped[left][:, left])
        s, z = scale[:, group].double(), zero[:, group].double()  # type: ignore[index]
        codes[:, column] = (work[:, column] / s + z).round().clamp(0, 7).to(torch.uint8)
        error = (work[:, column] - (codes[:, column] - z) * s) / inverse[0, 0]
        work[:, left] -= error[:, None] * inverse[0]
        left.remove(column)
    ours = method.quantize(weight, hessian)
    assert "rows_rounded" not in ours.notes
    assert torch.equal(ours.codes(), codes)


@pytest.mark.parametrize("order", ActOrder)
@pytest.mark.parametrize("grid", [GRID, Grid(4, 16, levels=Levels.nf4), Grid(2, 32, symmetric=True)])
def test_with_an_identity_hessian_it_is_round_to_nearest(weight: Tensor, grid: Grid, order: ActOrder) -> None:
    hessian = Hessian(128, torch.device("cpu")).load(
        {"sum": torch.eye(128, dtype=torch.float64), "tokens": torch.tensor(1)}
    )
    assert torch.equal(
        GPTQ(RTN(grid), act_order=order).quantize(weight, hessian).dequantize(),
        RTN(grid).quantize(weight).dequantize(),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 80),
    bits=st.sampled_from([2, 3, 4]),
    order=st.sampled_from(list(ActOrder)),
    symmetric=st.booleans(),
)
def test_with_the_better_rows_never_a_larger_weighted_error_than_round_to_nearest(
    seed: int, tokens: int, bits: int, order: ActOrder, symmetric: bool
) -> None:
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed))
    hessian = seen(correlated(tokens, 32, seed))
    grid = Grid(bits, 16, symmetric=symmetric)
    ours = GPTQ(RTN(grid), act_order=order, keep_better_rows=True).quantize(weight, hessian).dequantize()
    rounded = RTN(grid).quantize(weight, hessian).dequantize()
    assert weighted_error(weight, ours, hessian) <= weighted_error(weight, rounded, hessian) * (1 + 1e-9)


def test_each_row_is_the_better_of_two() -> None:
    """The option, off in the published algorithm, takes whole rows of one or the other, and counts them."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    hessian, grid = seen(correlated(6)), Grid(2, 16)
    kept, published = (
        GPTQ(RTN(grid), keep_better_rows=keep).quantize(weight, hessian) for keep in (True, False)
    )
    rounded = RTN(grid).quantize(weight)
    rows = [
        min((published, rounded), key=lambda value, row=row: row_error(weight, value.dequantize(), row))
        for row in range(64)
    ]
    expected = torch.stack([value.dequantize()[row] for row, value in enumerate(rows)])
    assert torch.equal(kept.dequantize(), expected)
    assert kept.notes["rows_rounded"] == sum(value is rounded for value in rows) > 0
    assert "rows_rounded" not in published.notes


def row_error(weight: Tensor, result: Tensor, row: int) -> float:
    hessian = seen(correlated(6))
    return weighted_error(weight[row : row + 1], result[row : row + 1], hessian)


def test_it_is_much_better_than_round_to_nearest_on_correlated_inputs() -> None:
    weight, hessian = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), seen(correlated(2000))
    ours, rounded = (m.quantize(weight, hessian).dequantize() for m in (GPTQ(RTN(GRID)), RTN(GRID)))
    assert weighted_error(weight, ours, hessian) < 0.5 * weighted_error(weight, rounded, hessian)


@pytest.mark.parametrize("block", [1, 16, 48, 1000])
def test_the_block_size_changes_nothing_but_float_rounding(weight: Tensor, block: int) -> None:
    hessian = seen(correlated(300, 128))
    one, other = (GPTQ(RTN(GRID), block=size).quantize(weight, hessian).codes() for size in (128, block))
    assert (one == other).float().mean() > 0.999


def test_a_singular_hessian_raises_the_damping_and_says_so(weight: Tensor) -> None:
    direction = torch.randn(1, 128, generator=torch.Generator().manual_seed(0)).double()
    singular = Hessian(128, torch.device("cpu")).load(
        {"sum": direction.T @ direction, "tokens": torch.tensor(1)}
    )
    result = GPTQ(RTN(GRID), damping=0.0).quantize(weight, singular)
    assert result.notes["damping_raised"] > 0
    assert torch.isfinite(result.dequantize()).all()
    assert "damping_raised" not in GPTQ(RTN(GRID)).quantize(weight, singular).notes


@pytest.mark.parametrize("columns", [64, 200, 600])  # in one block and in several, of unequal width
@pytest.mark.parametrize("toward", Toward)
def test_the_root_is_that_of_the_damped_hessian_in_its_order(columns: int, toward: Toward) -> None:
    hessian = seen(correlated(900, columns)).matrix()
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(0))
    before = hessian.clone()
    root, damping = triangular_root(hessian, hessian.diagonal(), order, 0.01, toward)
    assert damping == 0.01
    assert torch.equal(hessian, before)
    assert torch.equal(root, root.triu())
    damped = hessian + torch.diag(0.01 * toward.of(hessian.diagonal()))
    torch.testing.assert_close(root @ root.T, damped[order][:, order], rtol=0, atol=1e-12)
    assert (root.diagonal() > 0).all()


@pytest.mark.parametrize("columns", [64, 200])  # inverted whole, and by halves
def test_the_factor_and_each_block_of_it_are_of_the_inverse(columns: int) -> None:
    curvature = GPTQ(RTN(Grid(3, 8))).curvature(seen(correlated(300, columns)))
    identity = torch.eye(columns, dtype=torch.float64)
    factor, damped = curvature.factor, curvature.damped(Toward.identity)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped, identity, rtol=0, atol=1e-8)
    inverse, gain = curvature.of_block(slice(24, 40))
    torch.testing.assert_close(inverse, factor[24:40, 24:40], rtol=1e-9, atol=0)
    # Errors E of the columns before are divided by U: what they push into the block is −E U⁻¹ U[:, block].
    pushed = -torch.linalg.solve(factor[:24, :24], factor[:24, 24:40])
    torch.testing.assert_close(gain, pushed, rtol=0, atol=1e-9)


def test_a_channel_never_active_is_rounded_to_nearest(weight: Tensor) -> None:
    inputs = correlated(300, 128)
    inputs[:, [3, 77]] = 0
    grid = Grid(4, 16, auxiliary_bits=32)
    # static groups: the scales are those of RTN
    result = GPTQ(RTN(grid), act_order=ActOrder.full).quantize(weight, seen(inputs))
    assert result.notes["dead_columns"] == 2
    scale, zero = choose(weight, grid)
    assert torch.equal(result.codes()[:, [3, 77]], assign(weight, scale, zero, grid)[:, [3, 77]])


def test_overflowed_activations_are_named(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="activations overflow"):
        GPTQ(RTN(GRID)).quantize(weight, seen(torch.full((4, 128), torch.inf)))


def test_true_sequential_layers_see_their_compressed_neighbours() -> None:
    tokens, grid = tiny_tokens(4), Grid(bits=2, group_size=32)
    plain, ordered = tiny_model("llama"), tiny_model("llama")
    GPTQ(RTN(grid)).compress(plain, Calibration(tokens))
    GPTQ(RTN(grid), true_sequential=True).compress(ordered, Calibration(tokens))
    same = {name: torch.equal(stored(plain, name), stored(ordered, name)) for name in NAMES}
    # the first to run see the same either way
    assert same == {NAMES[0]: True, NAMES[1]: True, NAMES[2]: False, NAMES[3]: False}


def stored(model: torch.nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).weight.value.dequantize()  # type: ignore[union-attr, operator]


NAMES = [
    f"model.layers.0.{name}"
    for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
]


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"method\.damping=-1 is not possible"):
        GPTQ(RTN(), damping=-1)
    with pytest.raises(ValueError, match=r"method\.block=0 is not possible"):
        GPTQ(RTN(), block=0)
