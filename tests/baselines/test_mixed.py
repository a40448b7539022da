"""Mixed precision: the allocation against brute force, sensitivities against whole runs, both together."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from baselines.mixed import Mixed
from baselines.mixed.knapsack import Budget, allocate
from baselines.mixed.sensitivity import cost, predict, sensitivities, swapped
from baselines.rtn import RTN
from sinq import (
    SINQ,
    Calibration,
    CompressionReport,
    Context,
    Grid,
    LayerMethod,
    Layers,
    Levels,
    NotApplicable,
    OnMisfit,
    QuantizedTensor,
)
from sinq.calibration.statistics import Hessian
from sinq.methods.plan import LayerPlan
from tests.conftest import tiny_model, tiny_tokens

GRID = Grid(group_size=32)
CPU = torch.device("cpu")
TEXT = Calibration(tiny_tokens(2, 32))
BITS = (2, 3, 4, 8)


def best(nbytes: np.ndarray, sensitivity: np.ndarray, budget: int) -> float:
    """The least sensitivity within the budget, by trying everything."""
    layers = np.arange(len(nbytes))
    tried = (list(choice) for choice in product(range(nbytes.shape[1]), repeat=len(nbytes)))
    return min(
        sensitivity[layers, choice].sum() for choice in tried if nbytes[layers, choice].sum() <= budget
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Up to five layers of different sizes and sensitivities, curves that fall, a budget that can be met."""
    layers, choices = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    steps = np.array(
        draw(
            st.lists(
                st.lists(st.integers(1, 20), min_size=choices, max_size=choices),
                min_size=layers,
                max_size=layers,
            )
        )
    )
    falls = np.array(
        draw(
            st.lists(
                st.lists(st.integers(1, 99), min_size=choices, max_size=choices),
                min_size=layers,
                max_size=layers,
            )
        )
    )
    nbytes, sensitivity = steps.cumsum(1), falls[:, ::-1].cumsum(1)[:, ::-1].astype(float)
    return nbytes, sensitivity, draw(st.integers(int(nbytes[:, 0].sum()), int(nbytes[:, -1].sum())))


@settings(deadline=None, max_examples=200)
@given(problems())
def test_an_allocation_is_within_one_upgrade_of_the_best(problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    nbytes, sensitivity, budget = problem
    chosen = allocate(nbytes, sensitivity, budget)
    layers = np.arange(len(nbytes))
    found = sensitivity[layers, chosen].sum()
    assert nbytes[layers, chosen].sum() <= budget
    assert (
        best(nbytes, sensitivity, budget)
        <= found
        <= best(nbytes, sensitivity, budget) + (sensitivity[:, 0] - sensitivity[:, -1]).max()
    )
    for uniform in range(nbytes.shape[1]):
        assert found <= sensitivity[:, uniform].sum() or nbytes[:, uniform].sum() > budget
    left = budget - nbytes[layers, chosen].sum()
    for layer, choice in product(layers, range(nbytes.shape[1])):  # no upgrade that fits is left lying
        assert (
            sensitivity[layer, choice] >= sensitivity[layer, chosen[layer]]
            or nbytes[layer, choice] - nbytes[layer, chosen[layer]] > left
        )


@pytest.mark.parametrize("budget", range(12, 49))
def test_an_allocation_is_the_best_where_layers_are_alike_and_curves_convex(budget: int) -> None:
    nbytes = np.tile([2, 3, 4, 8], (6, 1))
    sensitivity = np.random.default_rng(0).lognormal(0, 2, (6, 1)) * np.array([64, 16, 4, 0.02])
    chosen = allocate(nbytes, sensitivity, budget)
    if budget <= 24:  # up to here all upgrades are of one byte
        assert sensitivity[np.arange(6), chosen].sum() == pytest.approx(best(nbytes, sensitivity, budget))
    assert budget - nbytes[np.arange(6), chosen].sum() <= (3 if budget > 24 else 0)


def test_a_budget_below_the_cheapest_is_refused() -> None:
    with pytest.raises(ValueError, match="the cheapest choices take 4 bytes, above the budget of 3"):
        allocate(np.array([[2, 3], [2, 3]]), np.ones((2, 2)), 3)


def log_probabilities(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens).logits.double().log_softmax(-1)


def steps_of(model: nn.Module, method: LayerMethod) -> tuple[LayerPlan, ...]:
    return method.plan(model, None, Context()).steps


def test_a_sensitivity_is_the_divergence_of_a_model_with_one_layer_rounded(architecture: str) -> None:
    model = tiny_model(architecture)
    measured = sensitivities(model, steps_of(model, RTN(GRID)), (2, 4), TEXT.tokens, Context())
    reference = log_probabilities(tiny_model(architecture), TEXT.tokens)
    every = steps_of(model, RTN(GRID))
    assert set(measured) == {(step.target.name, bits) for step in every for bits in (2, 4)}
    for name, bits in list(measured)[:: max(1, len(measured) // 5)]:
        alone = tiny_model(architecture)
        (step,) = [step for step in steps_of(alone, RTN(GRID)) if step.target.name == name]
        with torch.no_grad():  # views of the parameter: written in place
            for matrix in step.target.matrices().values():
                matrix.copy_(RTN(Grid(bits=bits, group_size=32)).quantize(matrix.contiguous()).dequantize())
        rounded = log_probabilities(alone, TEXT.tokens)
        expected = (reference.exp() * (reference - rounded)).sum(-1).mean().item()
        assert measured[name, bits] == pytest.approx(expected, rel=0.02)
        assert expected > 0


def test_measuring_leaves_the_model_as_it_was(architecture: str) -> None:
    model = tiny_model(architecture)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    sensitivities(model, steps_of(model, RTN(GRID)), (2,), TEXT.tokens, Context())
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(
        id(after[name]) == known and torch.equal(after[name], value)
        for name, (known, value) in before.items()
    )
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_failure_while_a_layer_is_swapped_puts_it_back() -> None:
    model = tiny_model("llama")
    step = steps_of(model, RTN(GRID))[0]
    dense = step.target.module.weight
    wrong = [RTN(GRID).quantize(torch.ones(3, 32))]
    with pytest.raises(RuntimeError, match="size"), swapped(step.target, wrong):
        pass
    assert step.target.module.weight is dense


@pytest.mark.parametrize("inner", [RTN(GRID), SINQ(GRID)])
def test_a_cost_is_what_the_method_gives_at_every_width(inner: LayerMethod) -> None:
    step = steps_of(tiny_model("moe"), inner)[4]
    assert step.target.parameter is not None
    measured = cost(step, BITS, CPU)
    for bits in BITS:
        matrices = [matrix.contiguous() for matrix in step.target.matrices().values()]
        values = [
            inner.with_grid(Grid(bits=bits, group_size=32)).quantize(matrix, None) for matrix in matrices
        ]
        errors = [
            (matrix - value.dequantize()).square().sum()
            for matrix, value in zip(matrices, values, strict=True)
        ]
        assert measured.nbytes[bits] == sum(value.nbytes for value in values)
        assert measured.squared_error[bits] == pytest.approx(float(sum(errors)), rel=1e-5)


def test_sensitivity_is_predicted_from_the_squared_error() -> None:
    errors = np.array([[16.0, 4.0, 1.0], [32.0, 8.0, 2.0], [0.0, 0.0, 0.0]])
    weights = np.array([10, 10, 10])
    # half the error; twice the error; nothing to round
    exact = np.array([[8.0, 2.0, 0.5], [64.0, 16.0, 4.0], [0.0, 0.0, 0.0]])
    predicted = predict(errors, errors[:, 1:], exact[:, 1:], weights, 0.0)
    np.testing.assert_allclose(predicted, exact)
    disagreeing = predict(errors[:1], errors[:1, :2], exact[:1, :2] * [4, 0.25], weights[:1], 0.0)
    np.testing.assert_allclose(disagreeing, exact[:1])  # the geometric mean of 4 and 1/4 is 1


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_shrinkage_narrows_the_sensitivity_per_weight_around_its_median(shrinkage: float) -> None:
    weights, errors = np.array([10.0, 20.0, 40.0]), np.array([[10.0], [20.0], [40.0]])
    per_weight = np.array([1.0, 3.0, 18.0])
    predicted = predict(errors, errors, (per_weight * weights)[:, None], weights, shrinkage)[:, 0] / weights
    np.testing.assert_allclose(np.log(predicted / 3), (1 - shrinkage) * np.log(per_weight / 3), atol=1e-12)


def compressed(
    model: nn.Module, inner: LayerMethod, bits_per_weight: float, **options: Any
) -> CompressionReport:
    layers = options.pop("layers", Layers())
    return Mixed(inner, Budget(bits_per_weight), tokens=32, **{"probes": (3,)} | options).compress(
        model, TEXT, Context(layers)
    )


def size(report: CompressionReport) -> float:
    return (
        8
        * sum(layer.nbytes for layer in report.parts)
        / sum(layer.dense_parameters for layer in report.parts)
    )


@pytest.mark.parametrize("bits_per_weight", [3.5, 4.7, 6.0])
def test_the_budget_is_met_and_each_layer_is_as_the_inner_method_makes_it(
    architecture: str, bits_per_weight: float
) -> None:
    model, dense = tiny_model(architecture), tiny_model(architecture)
    report = compressed(model, RTN(GRID), bits_per_weight)
    smallest = min(layer.dense_parameters for layer in report.parts)
    share = smallest / sum(layer.dense_parameters for layer in report.parts)
    assert (
        bits_per_weight - (2 * 4 * share if architecture == "moe" else share * 2)
        <= size(report)
        <= bits_per_weight
    )
    assert sum(count for note, count in report.decisions.items() if note.startswith("bits=")) == len(
        report.parts
    )
    matrices = {
        name: matrix for step in steps_of(dense, RTN(GRID)) for name, matrix in step.target.matrices().items()
    }
    for layer in report.parts:
        bits = int(layer.decided["bits"])
        alone = RTN(Grid(bits=bits, group_size=32)).quantize(matrices[layer.name].contiguous())
        assert layer.nbytes == alone.nbytes


@dataclass(frozen=True)
class Fat(LayerMethod):
    """Needs statistics, and stores 32-bit scales, which SINQ on its grid does too, but no column scales."""

    grid: Grid = Grid(group_size=32, auxiliary_bits=32)
    statistic = Hessian

    def quantize(self, weight: Tensor, statistic: Any) -> QuantizedTensor:
        assert statistic.tokens > 0
        return QuantizedTensor.round(weight, self.grid)


def test_a_calibrated_method_is_budgeted_by_its_own_bytes() -> None:
    report = compressed(tiny_model("llama"), Fat(), 4.9)
    share = 2 * 64 * 64 / sum(layer.dense_parameters for layer in report.parts)
    assert 4.9 - share <= size(report) <= 4.9
    assert report.seconds_statistics > 0


def test_layers_that_matter_get_more_bits() -> None:
    model = tiny_model("llama")
    with torch.no_grad():  # nobody hears the second block
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_submodule(f"model.layers.1.{name}").weight.mul_(1e-4)
    report = compressed(model, RTN(GRID), 4.0, bits=(2, 4, 5), probes=(3, 4))
    bits = {layer.name: layer.bits_per_weight for layer in report.parts}
    first, second = (
        [value for name, value in bits.items() if f"layers.{block}." in name] for block in (0, 1)
    )
    assert min(first) >= round(max(second), 2) == 3.0
    assert sum(first) / len(first) > 4.5


def test_a_layer_that_does_not_fit_is_shrunk_or_left_dense() -> None:
    layers = Layers(on_misfit=OnMisfit.shrink)
    report = compressed(tiny_model("moe"), RTN(Grid(group_size=48)), 4.5, layers=layers)
    assert report.parts[0].group_size == 32
    model = tiny_model("llama")
    report = compressed(model, RTN(Grid(group_size=128)), 3.5, layers=Layers(on_misfit=OnMisfit.skip))
    assert {layer.name.rsplit(".", 1)[-1] for layer in report.parts} == {"down_proj"}
    assert len(report.skipped) == 12
    assert size(report) <= 3.5


@pytest.mark.parametrize("bits_per_weight", [2.9, 9.1])
def test_a_budget_out_of_reach_is_refused_with_what_can_be_reached(bits_per_weight: float) -> None:
    model = tiny_model("llama")
    message = rf"={bits_per_weight} cannot be met: the choices of bits reach from 3.0000 to 9.0000"
    with pytest.raises(NotApplicable, match=message):
        compressed(model, RTN(GRID), bits_per_weight)
    assert isinstance(model.get_submodule("model.layers.0.mlp.down_proj"), nn.Linear)


def test_without_text_it_says_what_it_needs() -> None:
    assert Mixed(RTN(GRID)).needs_calibration
    with pytest.raises(NotApplicable, match="Mixed needs calibration text"):
        Mixed(RTN(GRID)).compress(tiny_model("llama"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bits": (2, 7)},
            r"bits=\[2, 7\] is not possible; it must be a list .* \(2, 3, 4, 5, 6, 8\)",
        ),
        ({"bits": ()}, r"bits=\[\] is not possible"),
        (
            {"probes": (3, 9)},
            r"probes=\[3, 9\] is not possible; it must be a list .* each one of \(2, 3, 4, 5, 6, 8\)",
        ),
        ({"tokens": 0}, "tokens=0 is not possible; it must be a whole number from 1"),
        ({"shrinkage": 1.5}, "shrinkage=1.5 is not possible; it must be a number from 0 to 1"),
        (
            {"inner": Mixed(RTN())},
            "inner=Mixed is not possible; it must be a method that works one layer at a time",
        ),
        ({"inner": RTN(Grid(levels=Levels.nf4))}, "bits=2 is not possible with levels=nf4"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixed(**{"inner": RTN(), **options})


def test_a_budget_is_above_zero() -> None:
    with pytest.raises(ValueError, match=r"budget.bits_per_weight=0.0 is not possible; .* above 0"):
        Budget(0.0)
