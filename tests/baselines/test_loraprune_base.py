"""LoRAPrune on a quantized base: trained through it, merged with it, and nothing of it is left."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.gptq import GPTQ
from baselines.loraprune import LoRAPrune, method
from baselines.loraprune.importance import Criterion
from baselines.loraprune.pruner import Pruner
from baselines.rtn import RTN
from sinq import SINQ, CompressedLinear, Context, Grid, LayerMethod, NotApplicable, load, save
from sinq.calibration.gradients import next_token_loss
from sinq.model.edits import edits
from sinq.model.slicing import SliceBlock
from sinq.model.units import find_units, matrix_of
from sinq.training import trainer
from sinq.training.lora import LoRALinear
from sinq.training.trainer import Training
from tests.baselines.test_loraprune import KINDS, SHORT, TEXT, StopError, quick, sharing
from tests.conftest import tiny_model, tiny_tokens

EIGHT, FOUR = SINQ(Grid(bits=8, group_size=16)), SINQ(Grid(bits=4, group_size=16))
STILL = Training(steps=2, batch=8, at_once=8, learning_rate=1e-12)
"""A training that hardly moves anything."""


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        *((kind, EIGHT) for kind in KINDS),
        ("llama", FOUR),
        ("gpt2", FOUR),
        ("llama", GPTQ(RTN(Grid(bits=4, group_size=16)))),
    ],
)
def test_the_sliced_and_merged_model_is_the_masked_one(
    kind: str, base: LayerMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, merged = tiny_model(kind), tiny_tokens(2, 20), method.merge
    seen: dict[str, Tensor] = {}

    def watch(model: nn.Module, adapters: dict[str, LoRALinear]) -> None:
        assert all(isinstance(adapter.base, CompressedLinear) for adapter in adapters.values())
        dense = {name: model.get_submodule(name) for name in adapters}
        for name, adapter in adapters.items():
            model.set_submodule(name, adapter.eval())
        with torch.no_grad():
            seen["masked"] = model(ids, use_cache=False).logits  # type: ignore[operator]
        for name, layer in dense.items():
            model.set_submodule(name, layer)
        merged(model, adapters)

    monkeypatch.setattr(method, "merge", watch)
    report = quick(0.5, base=base).compress(model, TEXT)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, seen["masked"], rtol=1e-4, atol=1e-4)
    assert {type(change) for change in edits(model)} == {SliceBlock}
    assert not any(isinstance(module, CompressedLinear) for module in model.modules())
    assert report.method.endswith(f"trained on {base.label}")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_training_begins_at_the_loss_of_the_quantized_model_and_the_merged_weights_are_its(kind: str) -> None:
    model, quantized, dense = tiny_model(kind), tiny_model(kind), tiny_model(kind)
    FOUR.compress(quantized)
    report = quick(0.0, base=FOUR, training=STILL).compress(model, TEXT)
    assert report.training is not None
    with torch.no_grad():
        expected = next_token_loss(quantized, TEXT.tokens).item()
        plain = next_token_loss(dense, TEXT.tokens).item()
    assert abs(report.training.losses[0] - expected) < 1e-5 < abs(plain - expected)
    for each, other in zip(find_units(model), find_units(dense), strict=True):
        for name in each.matrices:
            weight = matrix_of(other.layer(name))
            decoded = FOUR.quantize(weight, None).dequantize(torch.float32)
            torch.testing.assert_close(matrix_of(each.layer(name)), decoded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("criterion", [Criterion.lora, Criterion.magnitude])
def test_no_frozen_weight_has_a_gradient_and_the_dense_model_stays(
    criterion: Criterion, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    shared = sharing(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    original, looked = Pruner.before_update, []

    def look(self: Pruner, step: int) -> None:
        looked.append(step)
        assert all(isinstance(adapter.base, CompressedLinear) for adapter in self._adapters.values())
        assert all(not list(adapter.base.parameters()) for adapter in self._adapters.values())
        assert all(parameter.grad is None for parameter in model.parameters())
        original(self, step)

    monkeypatch.setattr(Pruner, "before_update", look)
    quick(criterion=criterion, base=EIGHT).compress(shared, TEXT)
    assert looked == list(range(SHORT.steps))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_row_says_what_it_was_trained_on_and_what_is_left_is_dense_or_compressed_again() -> None:
    model = tiny_model("llama")
    report = quick(0.5, base=EIGHT).compress(model, TEXT)
    assert report.method == f"LoRAPrune, trained on {EIGHT.label}"
    decisions = {decision.name: decision.value for decision in report.parts[-1].decisions}
    assert 8 < decisions["base_bits_per_weight"] < 12
    assert all(part.nbytes == 4 * part.parameters for part in report.parts)
    again = tiny_model("llama")
    report = quick(0.5, base=EIGHT, then=FOUR, chunk=16).compress(again, TEXT)
    assert report.method == f"LoRAPrune, then {FOUR.label}, trained on {EIGHT.label}"
    assert {part.group_size for part in report.parts[:-1]} == {16}


def test_it_is_saved_loaded_and_generates(tmp_path: Path) -> None:
    model = tiny_model("qwen3-tied")
    quick(0.5, keep_last=1, base=EIGHT).compress(model, TEXT)
    save(model, tmp_path)
    again, ids = load(tmp_path), tiny_tokens(1, 8)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
        one, two = (each.generate(ids, max_new_tokens=5, do_sample=False) for each in (model, again))
    assert torch.equal(one, two)


def test_an_interrupted_run_goes_on_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    states: dict[str, dict[str, Tensor]] = {}

    def interrupt(items: Iterable[Any], description: Any, total: int) -> Iterator[Any]:
        for count, item in enumerate(items):
            if total == SHORT.steps and count == 6:
                raise StopError
            yield item

    made, straight, resumed = quick(base=EIGHT), tiny_model("llama"), tiny_model("llama")
    made.compress(straight, TEXT)
    with pytest.raises(StopError):
        made.compress(tiny_model("llama"), TEXT, Context(progress=interrupt, states=states))
    assert states
    made.compress(resumed, TEXT, Context(states=states))
    pairs = zip(resumed.parameters(), straight.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_what_cannot_be_is_refused_before_the_model_changes() -> None:
    with pytest.raises(NotApplicable, match=r"method\.criterion=grad is not possible with method\.base=sinq"):
        quick(base=EIGHT, criterion=Criterion.grad)
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="group_size=48"):
        quick(base=SINQ(Grid(bits=8, group_size=48))).compress(model, TEXT)
    assert edits(model) == ()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    with pytest.raises(TypeError, match="base must be"):
        LoRAPrune(RTN(), base=8)  # type: ignore[arg-type]
