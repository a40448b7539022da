"""ABQ-LLM: its losses against loops, levels and their storage, compensation, and what training gains."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sinq
from baselines.abq import ABQ
from baselines.abq.losses import SMALLEST, attention_divergence, correction
from baselines.abq.trainer import ABQTrainer, Compensated
from baselines.rtn import RTN
from sinq import ActivationFormat, Activations, Calibration, Context, Grid, Layers, NotApplicable, OnMisfit
from sinq.formats.repacked import RepackedTensor
from sinq.formats.scalar import QuantizedTensor
from tests.baselines.inputs import with_outliers
from tests.conftest import tiny_model

TOKENS = torch.arange(4 * 24).reshape(4, 24) * 7 % 90
TEXT = Calibration(TOKENS)
GRID = Grid(bits=2, group_size=32)
SHORT = ABQ(GRID, epochs=6, clipping_rate=0.1, relative_loss=True)
FIVE = replace(SHORT, grid=Grid(3, 32), levels=5)
A4 = ActivationFormat(4, symmetric=False)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def error(method: Any, architecture: str = "llama") -> float:
    model = with_outliers(architecture)
    expected = logits(model)
    method.compress(model, TEXT)
    return ((logits(model) - expected).norm() / expected.norm()).item()


def test_correction_is_that_of_the_formula() -> None:
    found, target = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    cosines = []
    for one, other in zip(found[0].double().tolist(), target[0].double().tolist(), strict=True):
        product = sum(a * b for a, b in zip(one, other, strict=True))
        cosines.append(product / math.hypot(*one) / math.hypot(*other))
    assert correction(found, target).item() == pytest.approx(-math.log(abs(sum(cosines) / 5)), rel=1e-4)
    assert correction(3 * target, target).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("released", [False, True])
def test_divergence_is_that_of_the_formula(released: bool) -> None:
    """Of causal probabilities, whose masked entries are 0."""
    mask = torch.full((4, 4), -torch.inf).triu(1)
    found, target = ((torch.randn(1, 4, 4) + mask).softmax(-1) for _ in range(2))
    one, other = (p.softmax(-1) if released else p for p in (found.double()[0], target.double()[0]))

    def divergence(p: Tensor, q: Tensor) -> float:
        rows = [
            sum(a * math.log((a + SMALLEST) / (b + SMALLEST)) for a, b in zip(*pair, strict=True))
            for pair in zip(p.tolist(), q.tolist(), strict=True)
        ]
        return abs(sum(rows) / len(rows))

    expected = (divergence(other, one) + divergence(one, other)) / (4 if released else 1)
    assert attention_divergence(found, target, released).item() == pytest.approx(expected, rel=1e-4)
    assert attention_divergence(target, target, released).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:reduction")
def test_the_released_divergence_is_torchs() -> None:
    """`KLDivLoss(reduction="mean")` of a log-softmax and a softmax, both ways, as the authors call it."""
    found, target = (torch.randn(1, 6, 6).softmax(-1) for _ in range(2))
    divergence = torch.nn.KLDivLoss(reduction="mean")
    expected = divergence(target.log_softmax(-1), found.softmax(-1)).abs()
    expected += divergence(found.log_softmax(-1), target.softmax(-1)).abs()
    torch.testing.assert_close(attention_divergence(found, target, True), expected, rtol=1e-4, atol=1e-9)


def test_orders_of_the_card() -> None:
    """W2* < W2 < round to nearest, and with rounded inputs too."""
    two, five, nearest = error(SHORT), error(FIVE), error(RTN(GRID))
    assert five < 0.95 * two
    assert two < 0.9 * nearest
    grid = replace(GRID, bits=4)
    learned, rounded = (error(Activations(m, A4)) for m in (replace(SHORT, grid=grid), RTN(grid)))
    assert learned < 0.9 * rounded


def test_the_loss_is_finite_and_falls() -> None:
    report = SHORT.compress(tiny_model("qwen3-tied"), TEXT)
    assert all(0 < part.decided["block_trained"] < 1 for part in report.parts)


@pytest.mark.parametrize(("bits", "levels", "stored"), [(3, 5, 7 / 3), (2, 3, 8 / 5)])
def test_levels_are_stored_as_planes_or_repacked(bits: int, levels: int, stored: float) -> None:
    """Same codes either way; planes cost all their bits."""
    values: list[Any] = []
    for repacked in (False, True):
        model: Any = tiny_model("llama")
        method = replace(SHORT, grid=Grid(bits, 32), levels=levels, repacked=repacked, epochs=1)
        report = method.compress(model, TEXT)
        value = model.model.layers[1].mlp.down_proj.weight.value
        values.append(value)
        of_codes = stored if repacked else bits
        assert report.bits_per_weight == pytest.approx(of_codes + 1, rel=2e-3)  # scale and zero of 32 weights
    assert isinstance(values[0], QuantizedTensor)
    assert isinstance(values[1], RepackedTensor)
    assert set(values[0].codes().unique().tolist()) == set(range(levels))
    assert torch.equal(values[0].dequantize(), values[1].dequantize())


def test_repacked_models_are_saved_loaded_and_rounded(tmp_path: Path) -> None:
    model = tiny_model("llama")
    method = replace(FIVE, repacked=True, epochs=1)
    Activations(method, A4).compress(model, TEXT)
    sinq.save(model, tmp_path)
    assert torch.equal(logits(sinq.load(tmp_path)), logits(model))


def test_a_group_size_is_shrunk() -> None:
    method = replace(FIVE, grid=Grid(3, 48), repacked=True, epochs=1)
    report = method.compress(tiny_model("llama"), TEXT, Context(Layers(on_misfit=OnMisfit.shrink)))
    assert all(part.decided["shrunk_group_size"] == 32 for part in report.parts)


@pytest.mark.parametrize("compensated", [(1, 0), (0, 1), (0, 0), (3, 4)])
def test_down_of_the_first_and_last_blocks_is_compensated(compensated: tuple[int, int]) -> None:
    seen: list[tuple[int, str, Any]] = []

    class Watching(ABQTrainer):
        def layer(self, plan: Any, block: Any) -> Any:
            layer = super().layer(plan, block)
            if isinstance(layer, Compensated):
                weight = plan.target.tensor.detach()
                assert torch.equal(layer.matrix(weight), weight)  # no change at the start
                seen.append((block.index, plan.target.name, layer))
            return layer

    class Watched(ABQ):
        name = f"test_watched_abq_{compensated}"

        def trainer(self, blocks: Any, context: Context) -> ABQTrainer:
            return Watching(self, blocks, None)

    Watched(GRID, epochs=2, compensated=compensated, relative_loss=True).compress(tiny_model("llama"), TEXT)
    first, last = compensated
    assert [index for index, _, _ in seen] == [k for k in range(2) if k < first or k >= 2 - last]
    assert all(name.endswith("down_proj") for _, name, _ in seen)
    assert all(layer.a.abs().max() > 0 for _, _, layer in seen)


@pytest.mark.parametrize("option", ["squared_errors", "released_attention"])
def test_terms_of_the_released_code_are_options(option: str) -> None:
    states = []
    for on in (False, True):
        model = tiny_model("llama")
        replace(SHORT, epochs=2, **{option: on}).compress(model, TEXT)
        states.append(model.state_dict())
    assert any(not torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 5}, r"method\.levels=5 is not possible with grid\.bits=4 .* bits=3"),
        ({"levels": 5, "grid": Grid(2)}, r"levels=5 is not possible with grid\.bits=2"),
        ({"levels": 3, "grid": Grid(2, symmetric=True)}, r"symmetric=true.*zero-point"),
        ({"levels": 4}, r"method\.levels=4"),
        ({"repacked": True}, r"method\.repacked=true is not possible with method\.levels=0"),
        ({"compensated": (-1, 4)}, r"method\.compensated"),
        ({"compensation_rate": 0.0}, r"method\.compensation_rate=0"),
    ],
)
def test_options_that_are_not_possible_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ABQ(**options)


def test_compensation_needs_a_known_architecture() -> None:
    method = replace(SHORT, transformation=False)
    with pytest.raises(NotApplicable, match="GPT2LMHeadModel is not an architecture"):
        method.compress(tiny_model("gpt2"), TEXT)
    report = replace(method, compensated=(0, 0), epochs=1).compress(tiny_model("gpt2"), TEXT)
    assert len(report.parts) == 8


def test_attention_that_does_not_show_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.abq.trainer.Noting", lambda _: nullcontext())
    with pytest.raises(NotApplicable, match=r"block 0 showed 0 attention probabilities in 4 windows.*sdpa"):
        SHORT.compress(tiny_model("llama"), TEXT)
