"""Gradients of the loss: against finite differences and plain autograd; none is left in the model."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRMSNorm

from baselines.gwq import GWQ
from sinq import Calibration, Context, Grid, Site, SiteKind, collect, find_targets
from sinq.calibration.gradients import feed_gradients
from sinq.calibration.statistics import Gradient, SquaredGradient
from sinq.common.timing import Clock
from sinq.methods.layer_statistics import dense_statistics, find_groups
from sinq.model.targets import Target
from tests.conftest import tiny_model, tiny_tokens

CPU = torch.device("cpu")


def fed(model: nn.Module, tokens: Tensor, kind: type[Gradient] = Gradient) -> dict[str, Gradient]:
    targets = find_targets(model)
    statistics = [kind((target.numel // target.shape[1], target.shape[1]), CPU) for target in targets]
    feed_gradients(model, targets, tokens, statistics)
    return {target.name: statistic for target, statistic in zip(targets, statistics, strict=True)}


def loss_of(model: nn.Module, window: Tensor) -> float:
    """The definition, token by token, in float64."""
    logits = model(window[None]).logits[0].double()
    terms = [logits[t].logsumexp(0) - logits[t, window[t + 1]] for t in range(len(window) - 1)]
    return (sum(terms) / len(terms)).item()  # type: ignore[union-attr]


def in_float64(architecture: str) -> nn.Module:
    """All of it: transformers' RMSNorm goes through float32, whose rounding drowns small differences."""
    model = tiny_model(architecture).double()
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            exact = nn.RMSNorm(len(module.weight), module.variance_epsilon, dtype=torch.float64)
            exact.load_state_dict(module.state_dict())
            model.set_submodule(name, exact.requires_grad_(False))
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 stores its matrices transposed
def test_five_entries_of_each_layer_are_the_finite_differences(architecture: str) -> None:
    model, window, generator = in_float64(architecture), tiny_tokens(1)[0], torch.Generator().manual_seed(1)
    statistics, step = fed(model, window[None]), 1e-5
    for target in find_targets(model)[:8]:
        (matrix,) = target.matrices().values()
        for _ in range(5):
            index = tuple(torch.randint(size, (), generator=generator).item() for size in matrix.shape)
            kept, losses = matrix[index].item(), []
            for change in (step, -step):
                matrix[index] = kept + change
                losses.append(loss_of(model, window))
            matrix[index] = kept
            found = statistics[target.name].total()[index].item()
            assert found == pytest.approx(abs(losses[0] - losses[1]) / (2 * step), rel=1e-4, abs=1e-8)


def by_autograd(model: nn.Module, target: Target, tokens: Tensor) -> list[Tensor]:
    """The gradient of each window's loss as transformers defines it, as (out, in), experts stacked."""
    target.tensor.requires_grad_(True)
    found = []
    for window in tokens:
        loss = model(window[None], labels=window[None]).loss
        (gradient,) = torch.autograd.grad(loss, target.tensor)
        found.append(torch.cat(list(target.split(gradient).values())))
    target.tensor.requires_grad_(False)
    return found


def test_sizes_are_added_window_by_window_for_every_architecture(architecture: str) -> None:
    tokens, model = tiny_tokens(3), tiny_model(architecture)
    sizes, squares = fed(model, tokens), fed(model, tokens, SquaredGradient)
    target = find_targets(model)[-1]
    first, second, third = by_autograd(model, target, tokens)
    assert sizes[target.name].tokens == tokens.numel()
    close = {"rtol": 1e-3, "atol": 1e-7}
    torch.testing.assert_close(sizes[target.name].total(), first.abs() + second.abs() + third.abs(), **close)
    halves = sizes[target.name].halves()
    assert halves is not None
    torch.testing.assert_close(halves[0], first.abs() + third.abs(), **close)
    torch.testing.assert_close(halves[1], second.abs(), **close)
    torch.testing.assert_close(
        squares[target.name].total(), first**2 + second**2 + third**2, rtol=1e-3, atol=1e-10
    )


def test_dropout_plays_no_part() -> None:
    tokens = tiny_tokens(1)
    expected, found = fed(tiny_model("gpt2"), tokens), fed(tiny_model("gpt2").train(), tokens)
    assert all(torch.equal(found[name].total(), expected[name].total()) for name in expected)


def test_one_gradient_is_there_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_model("qwen3-tied"), []
    monkeypatch.setattr(
        Gradient, "update", lambda *_: seen.append(sum(p.grad is not None for p in model.parameters()))
    )
    fed(model, tiny_tokens(2))
    assert seen == [0] * 28  # the one that is handed over is the model's no more


class TestTheModelIsLeftAsItWas:
    @pytest.fixture
    def model(self) -> Iterator[nn.Module]:
        model = tiny_model("qwen3-tied").train()
        model.model.layers[1].eval()
        model.model.norm.weight.requires_grad_(True)
        model.model.norm.weight.grad = torch.full_like(model.model.norm.weight, 7.0)
        model.model.layers[0].mlp.up_proj.weight.grad = torch.full_like(
            model.model.layers[0].mlp.up_proj.weight, 3.0
        )
        before = self.state(model)
        yield model
        assert self.state(model) == before
        assert model.model.norm.weight.grad.eq(7).all()
        assert model.model.layers[0].mlp.up_proj.weight.grad.eq(3).all()
        assert all("forward" not in vars(module) for module in model.modules())
        assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())

    @staticmethod
    def state(model: nn.Module) -> list[object]:
        flags = [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()]
        return [*flags, *(module.training for module in model.modules()), torch.is_grad_enabled()]

    def test_after_all_went_well(self, model: nn.Module) -> None:
        with torch.no_grad():
            fed(model, tiny_tokens(2))

    def test_after_a_window_without_a_loss(self, model: nn.Module) -> None:
        with torch.no_grad(), pytest.raises(ValueError, match="loss on calibration window 0 is nan"):
            fed(model, tiny_tokens(2, seqlen=1))


@pytest.mark.parametrize("architecture", ["llama", "moe"])
def test_collect_feeds_them_by_name(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens(2)
    expected, wanted = fed(model, tokens), {}
    for target in find_targets(model):
        shape = (target.numel // target.shape[1], target.shape[1])
        wanted[Site(SiteKind.gradient, target.name)] = Gradient.for_layer(shape, CPU)
    collect(model, wanted, tokens)
    assert all(torch.equal(found.total(), expected[site.module].total()) for site, found in wanted.items())


def test_a_store_keeps_them_and_they_are_the_dense_models_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, store = tiny_model("llama"), tiny_tokens(2), {}
    steps = GWQ(Grid(4, 32)).plan(model, Calibration(tokens), Context()).steps
    groups = find_groups(steps, lambda: pytest.fail("gradients are not shared"))
    assert groups == [[step] for step in steps]

    def totals(calibration: Calibration) -> list[Tensor]:
        found = dense_statistics(model, groups, calibration, Context(), Clock())
        return [statistic.total() for _, statistic in found]  # type: ignore[attr-defined]

    fresh, kept = totals(Calibration(tokens)), totals(Calibration(tokens, sequential=False, store=store))
    assert store.keys() == {f"{step.target.name}.Gradient" for step in steps}
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *_, **__: pytest.fail("the model ran again"))
    found = totals(Calibration(tokens, sequential=False, store=store))
    assert all(
        torch.equal(one, two) and torch.equal(one, three)
        for one, two, three in zip(fresh, kept, found, strict=True)
    )
