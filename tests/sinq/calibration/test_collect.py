"""Statistics without compression: against hooks on an ordinary forward pass, and refusals."""

import pytest
import torch
from torch import Tensor, nn

from baselines.rtn import RTN
from sinq import Context, Grid, Site, SiteKind, collect
from sinq.calibration.statistics import Gradient, Hessian, Inputs
from sinq.model.targets import linear_places
from tests.conftest import tiny_model, tiny_tokens

CPU = torch.device("cpu")
TOKENS = tiny_tokens(3)


def linear_layers(model: nn.Module) -> dict[str, int]:
    """Inputs of every layer that shows them, by name: the head and what lies outside the blocks too."""
    return {target.name: target.shape[1] for target in linear_places(model) if target.parameter is None}


def inputs_of(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """All inputs of layers, (tokens, in), float64, by hooks on an ordinary forward pass."""
    caught: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, into=into: into.append(args[0].flatten(0, -2))
        )
        for name, into in caught.items()
    ]
    for window in TOKENS:
        model(window[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).double() for name, parts in caught.items()}


def dense_or_compressed(architecture: str, compressed: bool) -> nn.Module:
    model = tiny_model(architecture)
    if compressed:
        RTN(Grid(bits=3, group_size=32)).compress(model)
    return model


@pytest.mark.parametrize("compressed", [False, True])
def test_a_hessian_is_that_of_plain_hooks(architecture: str, compressed: bool) -> None:
    names = linear_layers(tiny_model(architecture))
    model = dense_or_compressed(architecture, compressed)
    before = model(TOKENS).logits
    wanted = {Site(SiteKind.inputs, name): Hessian(width, CPU) for name, width in names.items()}
    collect(model, wanted, TOKENS)
    inputs = inputs_of(model, list(names))
    for site, statistic in wanted.items():
        x = inputs[site.module]
        assert statistic.tokens == TOKENS.numel()
        torch.testing.assert_close(statistic.matrix(), x.T @ x / len(x), rtol=1e-4, atol=1e-6)
    assert torch.equal(model(TOKENS).logits, before)
    assert not any(model.get_submodule(name)._forward_pre_hooks for name in names)
    assert not any("forward" in vars(module) for module in model.modules())


def test_any_module_with_inputs_is_a_site() -> None:
    model, wanted = tiny_model("moe"), {Site(SiteKind.inputs, "model.layers.1.mlp"): Inputs(64, CPU)}
    collect(model, wanted, TOKENS)
    (statistic,) = wanted.values()
    expected = inputs_of(model, ["model.layers.1.mlp"])["model.layers.1.mlp"].abs().mean(0)
    torch.testing.assert_close(statistic.mean_magnitude().double(), expected, rtol=1e-5, atol=1e-7)


def test_two_kinds_of_sites_of_one_layer_are_collected_together() -> None:
    name, model = "model.layers.0.self_attn.q_proj", tiny_model("llama")
    hessian, gradient = Hessian(64, CPU), Gradient((64, 64), CPU)
    collect(model, {Site(SiteKind.inputs, name): hessian, Site(SiteKind.gradient, name): gradient}, TOKENS)
    assert hessian.tokens == gradient.tokens == TOKENS.numel()
    assert gradient.total().gt(0).any()


def test_a_statistic_goes_on_where_it_was() -> None:
    site, model = Site(SiteKind.inputs, "lm_head"), tiny_model("llama")
    parts, whole = Hessian(64, CPU), Hessian(64, CPU)
    for window in TOKENS:
        collect(model, {site: parts}, window[None])
    collect(model, {site: whole}, TOKENS, Context(device="cpu"))
    assert torch.equal(parts.matrix(), whole.matrix())


def test_nothing_wanted_costs_nothing() -> None:
    model = tiny_model("llama")
    model.forward = lambda *_, **__: pytest.fail("the model ran")
    collect(model, {}, TOKENS)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(SiteKind.inputs, "model.layers.7.mlp"), r"no module 'model\.layers\.7\.mlp'"),
        (Site(SiteKind.gradient, "lm_head"), r"cannot feed a Hessian, which is of inputs"),
    ],
)
def test_what_is_not_there_is_refused(site: Site, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(tiny_model("llama"), {site: Hessian(64, CPU)}, TOKENS)


def test_a_gradient_of_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no linear layer 'model\.norm'; one is 'model\.layers\.0"):
        collect(tiny_model("llama"), {Site(SiteKind.gradient, "model.norm"): Gradient((64, 1), CPU)}, TOKENS)
