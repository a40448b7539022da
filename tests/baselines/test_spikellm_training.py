"""SpikeLLM around a method that trains: channels of dense layers, and training with what will fire."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.abq import ABQ
from baselines.omniquant import OmniQuant
from baselines.omniquant.trainer import BlockTrainer
from baselines.rtn import RTN
from baselines.spikellm import SpikeLLM
from baselines.spikellm.channels import Salience, spiking_layers
from sinq import Calibration, Context, Grid
from sinq.algorithms.saliency import salient_count
from sinq.formats.spikes import NeuronFormat
from sinq.model.spikes import SpikingInputs
from tests.baselines.inputs import with_outliers
from tests.conftest import tiny_model

TOKENS = torch.arange(4 * 24).reshape(4, 24) * 7 % 90
TEXT = Calibration(TOKENS)
GRID = Grid(bits=4, group_size=32, auxiliary_bits=32)
SHORT = OmniQuant(GRID, epochs=3, clipping_rate=0.1, relative_loss=True)
METHOD = SpikeLLM(SHORT, NeuronFormat(3, 2), share=0.2)


def states(model: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found: tuple[Tensor, ...] = model(TOKENS, output_hidden_states=True).hidden_states
    return found


def error(method: Any) -> float:
    """Error of the last hidden states of a compressed model, relative to the dense one's."""
    model = with_outliers("llama")
    expected = states(model)[-1]
    method.compress(model, TEXT)
    return ((states(model)[-1] - expected).norm() / expected.norm()).item()


def neurons(channels: int = 20, **options: Any) -> SpikingInputs:
    """Neurons of which every third channel is salient."""
    inputs = SpikingInputs(NeuronFormat(**options), channels)
    inputs.choose(torch.arange(channels) % 3 == 0)
    return inputs


@pytest.mark.parametrize(
    "options", [{"bits": 4, "steps": 2}, {"bits": 2, "steps": 4}, {"bits": 1, "steps": 1}]
)
@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.5, 3.0])
def test_what_is_trained_through_is_what_fires(options: dict[str, int], shift: float) -> None:
    inputs, x = neurons(**options), torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(0)) + shift
    torch.testing.assert_close(inputs.through(x), inputs(x), rtol=1e-5, atol=1e-5)
    assert inputs.through(x.bfloat16()).dtype is torch.bfloat16


def test_its_gradient_is_that_of_rounding() -> None:
    """Against the formula in float64: 1 within a range, and Σ (code − zero − place) / levels at its ends."""
    inputs, x = neurons(bits=2, steps=2), torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    pull = torch.randn(5, 20, generator=torch.Generator().manual_seed(2))
    (inputs.through(x) * pull).sum().backward()
    wide, most = x.detach().double(), torch.where(inputs.mask(), 6, 3)
    low, high = wide.amin(1, keepdim=True), wide.amax(1, keepdim=True)
    place, scale = wide / ((high - low) / most), (high - low) / most
    zero = (-low / scale).round()
    code = (place + zero).round()
    inside = (code >= 0) & (code <= most)
    slope = ((code.clamp_min(0).minimum(most) - zero - torch.where(inside, place, 0)) / most * pull).sum(
        1, True
    )
    ends = (wide == high).double() - (wide == low).double()
    assert x.grad is not None
    torch.testing.assert_close(
        x.grad.double(), torch.where(inside, pull, 0) + slope * ends, rtol=1e-4, atol=1e-5
    )


def test_channels_are_those_of_dense_weights_behind_blocks_that_fire() -> None:
    """The masks of both blocks, from the definition, on a model of which the first block is compressed."""
    model, dense = tiny_model("llama"), tiny_model("llama")
    METHOD.compress(model, TEXT)
    hidden = states(dense)[0], states(model)[1]  # behind the embedding, and behind the block that fires
    blocks = zip(dense.model.layers, model.model.layers, hidden, strict=True)
    for plain, block, given in blocks:
        seen = inputs_of(plain, given, dense)
        for name, layer in plain.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            x, weight = seen[name].flatten(0, 1).double(), layer.weight.double()
            score = ((x @ weight.T @ weight) * x).mean(0)
            mask = block.get_submodule(name).inputs.mask()
            assert int(mask.sum()) == salient_count(len(mask), 0.2)
            assert score[mask].min() >= score[~mask].max() - 1e-4 * score.abs().max()


def inputs_of(block: Any, hidden: Tensor, model: Any) -> dict[str, Tensor]:
    """What goes into the linear layers of a block, by name."""
    seen: dict[str, Tensor] = {}
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    positions = torch.arange(hidden.shape[1])[None]
    with torch.no_grad():
        block(hidden, position_embeddings=model.model.rotary_emb(hidden, positions), attention_mask=None)
    return seen


@pytest.mark.parametrize("inner", [SHORT, ABQ(GRID, epochs=1, compensated=(1, 0))], ids=["omniquant", "abq"])
def test_what_is_trained_is_what_is_stored(inner: OmniQuant) -> None:
    """The inputs of the second block in training are those behind the first as it is stored, firing."""
    entered: list[Tensor] = []

    class Watched(type(inner)):  # type: ignore[misc]
        name = f"test_watched_spikes_{inner.name}"

        def trainer(self, blocks: Any, context: Context) -> BlockTrainer:
            trainer: BlockTrainer = super().trainer(blocks, context)
            compress = trainer.compress_block

            def watching(block: Any) -> Any:
                entered.append(torch.cat(list(block.inputs)))
                return compress(block)

            trainer.compress_block = watching  # type: ignore[method-assign]
            return trainer

    model = tiny_model("llama")
    watched = Watched(**{field.name: getattr(inner, field.name) for field in fields(inner)})
    replace(METHOD, inner=watched).compress(model, TEXT)
    torch.testing.assert_close(entered[1], states(model)[1], rtol=1e-4, atol=1e-4)


def test_training_with_neurons_loses_less_than_rounding_to_nearest() -> None:
    assert error(METHOD) < 0.9 * error(replace(METHOD, inner=RTN(GRID)))


def test_channels_by_lot_are_the_same_for_all_methods() -> None:
    found = []
    for inner in (RTN(GRID), SHORT):
        model = tiny_model("llama")
        replace(METHOD, inner=inner, salience=Salience.random).compress(model, TEXT)
        found.append([inputs.mask() for _, inputs in spiking_layers(model)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert all(mask.any() for mask in found[0])
