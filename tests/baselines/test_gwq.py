"""GWQ: against its definition in loops, at the ends of its share, and against other masks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from baselines.gwq import GWQ, Score
from baselines.hadamard import Hadamard
from baselines.mixed import Mixed
from baselines.mixed.knapsack import Budget
from baselines.rtn import RTN
from sinq import Calibration, Grid, Levels, NotApplicable, QuantizedTensor
from sinq.calibration.statistics import Gradient, SquaredGradient
from tests.conftest import tiny_model, tiny_tokens

GRID = Grid(bits=3, group_size=16)
EXACT = replace(GRID, auxiliary_bits=32)
SCORES = list(Score)


def gradient(shape: tuple[int, int] = (96, 128), seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3


def seen(method: GWQ, *windows: Tensor) -> Gradient | None:
    """The method's statistic, after these gradients."""
    if method.statistic is None:
        return None
    statistic = method.statistic.for_layer((windows[0].shape[0], windows[0].shape[1]), windows[0].device)
    assert isinstance(statistic, Gradient)
    for one in windows:
        statistic.update(one, tokens=10)
    return statistic


def mask_of(method: GWQ, weight: Tensor, *windows: Tensor) -> Tensor:
    """Where the outliers are, from what is stored."""
    value = method.quantize(weight, seen(method, *windows))
    mask = torch.zeros(value.shape, dtype=torch.bool)
    for row, (start, end) in enumerate(value.row_starts.unfold(0, 2, 1).tolist()):
        mask[row, value.columns[start:end].long()] = True
    return mask


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.37, 1.0])
def test_so_many_weights_are_outliers(weight: Tensor, score: Score, share: float) -> None:
    mask = mask_of(GWQ(GRID, share, score), weight, gradient())
    assert abs(mask.sum().item() - share * mask.numel()) <= 1


def test_it_is_its_definition(weight: Tensor) -> None:
    """Group by group and weight by weight, in float64."""
    size = gradient().abs()
    threshold = size.flatten().sort(descending=True).values[round(0.05 * size.numel()) - 1]
    found = GWQ(EXACT, 0.05).quantize(weight, seen(GWQ(EXACT), gradient())).dequantize()
    for i in range(0, 96, 5):
        for group in range(8):
            columns = range(16 * group, 16 * group + 16)
            others = [weight[i, j].item() for j in columns if size[i, j] < threshold]
            step = (max(others) - min(others)) / 7
            zero = -round(min(others) / step)
            for j in columns:
                w = weight[i, j].item()
                expected = (
                    (min(max(round(w / step) + zero, 0), 7) - zero) * step
                    if size[i, j] < threshold
                    else weight[i, j].half().item()
                )
                off = abs(found[i, j].item() - expected)
                tie = abs(abs(w / step - round(w / step)) - 0.5) < 1e-3
                assert off <= (1.01 * step if tie else 1e-5 * step)


@pytest.mark.parametrize("score", SCORES)
def test_others_are_half_a_step_off_at_most_and_outliers_are_their_float16(
    weight: Tensor, score: Score
) -> None:
    method = GWQ(EXACT, 0.05, score)
    value, mask = method.quantize(weight, seen(method, gradient())), mask_of(method, weight, gradient())
    assert isinstance(value.inner, QuantizedTensor)
    step, found = value.inner.scale().repeat_interleave(16, dim=1), value.dequantize()
    assert ((found - weight).abs() <= step * (0.5 + 1e-4))[~mask].all()
    assert torch.equal(found[mask], weight[mask].half().float())


def test_ranges_do_not_see_outliers(weight: Tensor) -> None:
    spiked = weight.clone()
    spiked[::3, 5] = 50.0
    method = GWQ(GRID, 32 / weight.numel(), Score.magnitude)
    step = method.quantize(spiked).inner.scale()  # type: ignore[attr-defined]
    assert step.max() < QuantizedTensor.round(weight, GRID).scale().max() * 1.001


@pytest.mark.parametrize("score", SCORES)
def test_without_outliers_it_is_round_to_nearest(weight: Tensor, score: Score) -> None:
    value = GWQ(GRID, 0.0, score).quantize(weight, seen(GWQ(GRID, score=score), gradient()))
    plain = RTN(GRID).quantize(weight)
    assert isinstance(value.inner, QuantizedTensor)
    assert value.inner.tensors.keys() == plain.tensors.keys()
    assert all(torch.equal(value.inner.tensors[name], tensor) for name, tensor in plain.tensors.items())
    assert value.nbytes == plain.nbytes + 4 * 97  # the rows begin somewhere
    assert torch.equal(value.dequantize(), plain.dequantize())


def test_with_nothing_else_it_is_the_weight_in_float16(weight: Tensor) -> None:
    assert torch.equal(
        GWQ(GRID, 1.0).quantize(weight, seen(GWQ(GRID), gradient())).dequantize(), weight.half().float()
    )


def test_scores_are_what_they_say(weight: Tensor) -> None:
    one, two = gradient(seed=1), gradient(seed=2)
    tables = {
        Score.grad: one.abs() + two.abs(),
        Score.grad_weight: (one.abs() + two.abs()) * weight.abs(),
        Score.fisher: one**2 + two**2,
        Score.magnitude: weight.abs(),
    }
    for score, table in tables.items():
        mask = mask_of(GWQ(GRID, 0.02, score), weight, one, two)
        assert table[mask].min() >= table[~mask].max()
    assert not torch.equal(
        mask_of(GWQ(GRID, score=Score.fisher), weight, one, two), mask_of(GWQ(GRID), weight, one, two)
    )
    assert torch.equal(mask_of(GWQ(GRID, score=Score.fisher), weight, one), mask_of(GWQ(GRID), weight, one))


def test_magnitudes_are_added_not_gradients(weight: Tensor) -> None:
    """Where windows cancel, their mean says nothing; the paper's rule must not."""
    one, noise = gradient(), 1e-3 * gradient(seed=9)
    assert torch.equal(
        mask_of(GWQ(GRID), weight, one, noise - one), mask_of(GWQ(GRID), weight, one, one - noise)
    )


def test_chance_is_a_seed(weight: Tensor) -> None:
    zero, same, other = (mask_of(GWQ(GRID, score=Score.random, seed=seed), weight) for seed in (0, 0, 1))
    assert torch.equal(zero, same)
    assert (zero & other).sum() < 0.1 * zero.sum()


def test_the_overlap_of_masks_is_that_of_two_halves(weight: Tensor) -> None:
    one, two, three = (gradient(seed=seed) for seed in (1, 2, 3))
    two = two + one
    method = GWQ(GRID, 0.02)
    first, second = mask_of(method, weight, one, three), mask_of(method, weight, two)
    notes = method.quantize(weight, seen(method, one, two, three)).notes
    assert notes["mask_overlap"] == pytest.approx(((first & second).sum() / first.sum()).item())
    assert 0.02 < notes["mask_overlap"] < 1
    assert "mask_overlap" not in method.quantize(weight, seen(method, one)).notes


def test_decisions_are_counted(weight: Tensor) -> None:
    one_sided = weight.abs() + 0.1
    one_sided[0, :16] = 1.0
    size = torch.zeros(96, 128)
    size[0, :16] = size[1, 3] = size[2, 40] = size[2, 41] = 1.0  # a whole group, and three of two others
    method = GWQ(EXACT, 20 / size.numel())
    value = method.quantize(one_sided, seen(method, size))
    assert value.notes == {"widened_groups": 3.0, "outliers_of_score_0": 1.0}
    mask = mask_of(method, one_sided, size)
    assert torch.equal(value.dequantize()[mask], one_sided[mask].half().float())
    assert (
        "widened_groups"
        not in replace(method, grid=replace(EXACT, symmetric=True))
        .quantize(one_sided, seen(method, size))
        .notes
    )


def test_the_gradient_foretells_the_change_of_the_loss() -> None:
    """Compare Σ G ∘ (Ŵ − W) with the change of the loss, layer by layer, at 8 bits: mostly first order."""
    window, agreed = tiny_tokens(1, 64), []
    method = GWQ(Grid(8, 32))
    layers = [
        f"model.layers.{block}.{name}"
        for block in (0, 1)
        for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    ]
    for name in layers:
        model = tiny_model("llama").double()
        weight = model.get_submodule(name).weight.requires_grad_(True)
        before = model(window, labels=window).loss
        (signed,) = torch.autograd.grad(before, weight)
        change = (
            method.quantize(weight.detach().float(), seen(method, signed.float())).dequantize().double()
            - weight.detach()
        )
        with torch.no_grad():
            weight += change
            agreed.append(
                (model(window, labels=window).loss - before).item() / (signed * change).sum().item()
            )
    assert all(0.5 < ratio < 2 for ratio in agreed)


def first_order(method: GWQ | RTN, tokens: Tensor) -> float:
    """Σ |G| · |Ŵ − W| over all layers of a tiny model."""
    dense, model = tiny_model("llama"), tiny_model("llama")
    report, total = method.compress(model, Calibration(tokens)), 0.0
    for layer in report.parts:
        weight = dense.get_submodule(layer.name).weight.requires_grad_(True)
        (found,) = torch.autograd.grad(dense(tokens, labels=tokens).loss, weight)
        weight.requires_grad_(False)
        total += (
            (found.abs() * (model.get_submodule(layer.name).weight.value.dequantize() - weight).abs())
            .sum()
            .item()
        )
    return total


def test_gradients_choose_better_than_chance_which_is_better_than_nothing() -> None:
    """Measure the bound that the weights are chosen by, on the text of the gradients.

    A random model has no structure that another text would share.
    """
    grid, tokens = Grid(3, 32), tiny_tokens(1)
    methods = (GWQ(grid, 0.05), GWQ(grid, 0.05, Score.random), RTN(grid))
    gradients, chance, nothing = (first_order(method, tokens) for method in methods)
    assert gradients < 0.9 * chance
    assert chance < nothing


def test_ordering_of_layer_errors(weight: Tensor) -> None:
    """By tr(E H Eᵀ), keeping the largest weights is better than keeping any, and any better than none."""
    inputs = torch.randn(400, 128, generator=torch.Generator().manual_seed(0))

    def error(value: Tensor) -> float:
        return (inputs @ (value - weight).T).square().sum().item()

    kept, any_, none = (
        error(method.quantize(weight).dequantize())
        for method in (GWQ(GRID, 0.05, Score.magnitude), GWQ(GRID, 0.05, Score.random), RTN(GRID))
    )
    assert kept < 0.8 * any_
    assert any_ < none


def test_layers_report_their_overlap_and_the_head_stays_tied() -> None:
    model = tiny_model("qwen3-tied")
    embedding = model.get_input_embeddings().weight.clone()
    report = GWQ(Grid(4, 32)).compress(model, Calibration(tiny_tokens(2)))
    assert report.decisions["mask_overlap"] == 14
    assert report.seconds_statistics > 0
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, embedding)


def test_fused_experts_have_gradients_of_their_own() -> None:
    model, tokens = tiny_model("moe"), tiny_tokens(1)
    report = GWQ(Grid(4, 32)).compress(model, Calibration(tokens))
    dense = tiny_model("moe")
    parameter = dense.model.layers[1].mlp.experts.down_proj.requires_grad_(True)
    (found,) = torch.autograd.grad(dense(tokens, labels=tokens).loss, parameter)
    for k, matrix in enumerate(parameter.detach()):
        value = model.model.layers[1].mlp.experts.down_proj.stores()[k].value
        kept = (value.dequantize() == matrix.half().float()) & (
            found[k].abs() >= found[k].abs().flatten().topk(len(value.values)).values[-1]
        )
        assert kept.sum() >= len(value.values) - 1  # a tie of float rounding
    assert len([layer for layer in report.parts if ".experts." in layer.name]) == 16


@pytest.mark.parametrize("score", [Score.magnitude, Score.random])
def test_some_scores_need_no_text(score: Score) -> None:
    assert not GWQ(score=score).needs_calibration
    assert len(GWQ(Grid(4, 32), score=score).compress(tiny_model("llama")).parts) == 14


def test_it_mixes() -> None:
    method = Mixed(GWQ(Grid(4, 32)), Budget(bits_per_weight=5.5))
    report = method.compress(tiny_model("llama"), Calibration(tiny_tokens(2)))
    weights = sum(layer.dense_parameters for layer in report.parts)
    assert 5 < 8 * sum(layer.nbytes for layer in report.parts) / weights <= 5.5


def test_what_cannot_be_is_named() -> None:
    for share in (-0.1, 1.5):
        with pytest.raises(
            ValueError, match=rf"method\.share={share} is not possible; it must be a number from 0 to 1"
        ):
            GWQ(share=share)
    with pytest.raises(
        NotApplicable, match=r"grid\.levels=nf4 is not possible with GWQ unless symmetric=true"
    ):
        GWQ(Grid(levels=Levels.nf4))
    with pytest.raises(NotApplicable, match="the Gradient that inner=GWQ works from is not of inputs"):
        Hadamard(GWQ())
    with pytest.raises(
        NotApplicable,
        match="GWQ needs calibration text: it works from the Gradient of the loss by each layer's weight",
    ):
        GWQ(Grid(4, 32)).compress(tiny_model("llama"))
    with pytest.raises(
        NotApplicable, match=r"which float16 is too narrow for; use model\.dtype=float32 or bfloat16"
    ):
        GWQ(Grid(4, 32)).compress(tiny_model("llama").half(), Calibration(tiny_tokens()))


@pytest.mark.parametrize("levels", [Levels.nf4, Levels.fp4])
def test_symmetric_tables_leave_room_for_outliers(weight: Tensor, levels: Levels) -> None:
    method = GWQ(Grid(4, 16, levels=levels, symmetric=True), 0.05)
    value, mask = method.quantize(weight, seen(method, gradient())), mask_of(method, weight, gradient())
    assert torch.equal(value.dequantize()[mask], weight[mask].half().float())


def test_a_squared_gradient_is_the_statistic_of_fisher() -> None:
    assert GWQ(score=Score.fisher).statistic is SquaredGradient
