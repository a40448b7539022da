"""SmoothQuant: the model's function stays, s is the paper's, and rounded activations lose less."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from baselines.rtn import RTN
from baselines.smoothquant import Peaks, SmoothQuant
from sinq import ActivationFormat, Activations, Calibration, Context, Grid, NotApplicable
from sinq.formats.activations import Per
from tests.baselines.inputs import with_outliers
from tests.conftest import tiny_model

TOKENS = torch.arange(3 * 40).reshape(3, 40) % 90
TEXT = Calibration(TOKENS)
METHOD = SmoothQuant(RTN(Grid(bits=8, group_size=32)))
WHOLE = replace(METHOD, down=True, output=True)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3-tied", "moe"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_keeps_the_function(architecture: str, alpha: float) -> None:
    model = with_outliers(architecture)
    expected, before = logits(model), model.model.layers[0].self_attn.q_proj.weight.clone()
    method = replace(METHOD if architecture == "moe" else WHOLE, alpha=alpha)
    method.rewrite(model, TEXT, Context())
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.weight, before)
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)


def test_s_is_that_of_the_paper() -> None:
    """Against equation 4, from hooks on the dense model and its weights."""
    model, dense = with_outliers("llama"), with_outliers("llama")
    layer = dense.model.layers[1]
    seen: list[Tensor] = []
    layer.mlp.up_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(dense)
    weights = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
    inputs = torch.cat(seen).abs().amax((0, 1))
    factor = inputs**0.8 / weights.abs().amax(0) ** (1 - 0.8)
    replace(METHOD, alpha=0.8).rewrite(model, TEXT, Context())
    smoothed = model.model.layers[1]
    torch.testing.assert_close(smoothed.mlp.up_proj.weight, layer.mlp.up_proj.weight * factor)
    gain = layer.post_attention_layernorm.weight / factor
    torch.testing.assert_close(smoothed.post_attention_layernorm.weight, gain)


def test_activations_are_as_even_as_alpha_says() -> None:
    """With α = 1 all channels have the same peak; with α = 0 all columns of weights have."""
    for alpha in (0.0, 1.0):
        model = with_outliers("llama")
        replace(WHOLE, alpha=alpha).rewrite(model, TEXT, Context())
        for layer in model.model.layers:
            peaks = Peaks()
            layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, peaks=peaks: peaks.update(args[0]))
            logits(model)
            columns = layer.mlp.down_proj.weight.abs().amax(0)
            assert peaks.largest is not None
            torch.testing.assert_close(
                peaks.largest if alpha else columns, torch.ones(128), rtol=1e-3, atol=0
            )


def test_the_unit_of_the_inputs_does_not_matter() -> None:
    inputs, weights = torch.rand(64) + 0.1, torch.rand(64) + 0.1
    factor = METHOD.factor(inputs, weights)
    scaled = METHOD.factor(inputs * 64, weights)
    torch.testing.assert_close(scaled / scaled.mean(), factor / factor.mean())


def test_a_channel_that_is_never_active_stays_finite() -> None:
    factor = METHOD.factor(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert factor.isfinite().all()
    assert (factor > 0).all()


def test_rounded_activations_lose_less() -> None:
    """With outliers in a few channels and a scale for the whole tensor, as in the paper's figure 2."""
    expected = logits(with_outliers("llama"))
    errors = []
    for method in (METHOD.inner, METHOD):
        model = with_outliers("llama")
        Activations(method, ActivationFormat(8, Per.tensor)).compress(model, TEXT)
        errors.append((logits(model) - expected).norm())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    ("architecture", "method", "calibration", "message"),
    [
        ("llama", METHOD, None, "SmoothQuant needs calibration text"),
        ("opt", METHOD, TEXT, "OPTForCausalLM is not an architecture"),
        ("moe", replace(METHOD, down=True), TEXT, r"method\.down=true .* fused experts"),
    ],
)
def test_refusals_leave_the_model(
    architecture: str, method: SmoothQuant, calibration: Calibration | None, message: str
) -> None:
    model = tiny_model(architecture)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NotApplicable, match=message):
        method.compress(model, calibration)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_options_out_of_range_are_named() -> None:
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"method\.alpha="):
            replace(METHOD, alpha=alpha)
