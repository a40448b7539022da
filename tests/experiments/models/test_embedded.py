"""Orders of methods that a small random model cannot show, on the embedded one."""

from typing import Any

import pytest
import torch

from baselines.aqlm import AQLM
from baselines.gptq import GPTQ
from baselines.gwq import GWQ, Score
from baselines.prefixquant import Prefix
from baselines.prefixquant.detection import detect
from baselines.rtn import RTN
from experiments.data.text import StateOfTheUnion, tokenize
from experiments.models.embedded import _without_bar
from experiments.models.source import SmolLM2, load, sparing_clone
from sinq import ActivationFormat, Activations, Calibration, Context, Grid, LayerMethod
from sinq.calibration.gradients import next_token_loss
from sinq.calibration.statistics import Hessian
from sinq.formats.activations import Per


@pytest.mark.slow
def test_a_prefix_takes_the_outlier_tokens() -> None:
    """PrefixQuant's phenomenon: few tokens spoil static scales, and a prefix takes them."""
    loaded, text = load(SmolLM2(), torch.device("cpu")), StateOfTheUnion()
    part, other = (
        tokenize(each, loaded.tokenizer, loaded.tokenizer_hash)[:4096].reshape(8, 512)
        for each in (text.calibration(), text.evaluation())
    )
    static = ActivationFormat(8, Per.tensor, static=True)
    losses = []
    for inner in (RTN(Grid(8)), Prefix(RTN(Grid(8)))):
        model: Any = sparing_clone(loaded.model)
        report = Activations(inner, static).compress(model, Calibration(part))
        with torch.no_grad():
            losses.append(sum(next_token_loss(model, window).item() for window in other[:2]))
    found = report.parts[-1].decided
    assert found["prefix_token_2"], "another token than the one that begins texts"
    assert found["largest_ratio"] > 10 * found["largest_ratio_behind_prefix"]
    after = detect(model, other, 64.0, Context())
    assert after.calm_windows >= 0.95
    assert losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["self_attn.o_proj", "mlp.down_proj"])
def test_aqlm_loses_less_on_real_layers_than_gptq_and_rtn(name: str) -> None:
    """Compare tr(E H Eᵀ) at 2 bits in the tenth block. GPTQ and RTN store 2.4 bits, AQLM at most 2.2."""
    loaded = load(SmolLM2(), torch.device("cpu"))
    tokens = tokenize(StateOfTheUnion().calibration(), loaded.tokenizer, loaded.tokenizer_hash)
    tokens = tokens[:8192].reshape(-1, 512)
    layer = loaded.model.get_submodule(f"model.layers.10.{name}")
    statistic = Hessian.for_layer(tuple(layer.weight.shape), torch.device("cpu"))
    layer.register_forward_pre_hook(
        lambda _, inputs: statistic.update(inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    with torch.no_grad():
        for window in tokens:
            loaded.model(window[None])
    weight = layer.weight.detach().float()

    def lost(method: LayerMethod) -> tuple[float, float]:
        value = method.quantize(weight, statistic if method.statistic else None)
        error = value.dequantize().double() - weight
        return ((error @ statistic.matrix()) * error).sum().item(), 8 * value.nbytes / weight.numel()

    aqlm, gptq, rtn = (
        lost(method)
        for method in (AQLM(rounds=4, steps=25, init_iterations=30), GPTQ(RTN(Grid(2))), RTN(Grid(2)))
    )
    assert aqlm[0] < gptq[0] < rtn[0]
    assert aqlm[1] < gptq[1]


@pytest.mark.slow
def test_gradients_of_gwq_choose_better_than_magnitude_or_chance() -> None:
    """NLL of held-out text at 3 bits ranks gradients before magnitude before chance.

    Gradients are also before RTN with more bits (groups of 32).
    """
    loaded, text = load(SmolLM2(), torch.device("cpu")), StateOfTheUnion()
    seen_text, held_out = (
        tokenize(part, loaded.tokenizer, loaded.tokenizer_hash)[:1024].reshape(-1, 512)
        for part in (text.calibration(), text.evaluation())
    )

    def nll(method: GWQ | RTN) -> tuple[float, float]:
        model: Any = sparing_clone(loaded.model)
        report = method.compress(model, Calibration(seen_text[:1]))
        with torch.no_grad():
            loss = sum(next_token_loss(model, window).item() for window in held_out)
        return loss, sum(layer.nbytes for layer in report.parts)

    gradients, magnitude, chance = (
        nll(GWQ(Grid(3), score=score)) for score in (Score.grad, Score.magnitude, Score.random)
    )
    finer = nll(RTN(Grid(3, 32)))
    assert gradients[0] < magnitude[0] < chance[0]
    assert gradients[0] < finer[0]
    assert gradients[1] < finer[1]


def test_the_conversion_draws_no_bar_and_leaves_other_bars_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import modeling_gguf_pytorch_utils as gguf

    before = gguf.tqdm
    with _without_bar():
        assert list(gguf.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert gguf.tqdm is before
    list(gguf.tqdm([1, 2], desc="Converting"))
    assert "Converting" in capsys.readouterr().err
