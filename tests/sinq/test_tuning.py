"""Tuning of a block: what it trains, what it leaves alone, and that nothing it keeps is worse where it was measured."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sinq import Calibration, Grid, LayerMethod, QuantizedTensor
from sinq.blocks import block_at, enter, find_blocks
from sinq.linear import CompressedLinear
from sinq.statistics import Hessian
from sinq.tuning import BlockTuning, Finished
from tests.conftest import tiny_model, tiny_tokens

TOKENS = tiny_tokens(8)


@dataclass(frozen=True)
class Tuned(LayerMethod):
    """Rounds to nearest, and has its blocks tuned."""

    grid: Grid = Grid(bits=2, group_size=32, auxiliary_bits=16)
    tuning: BlockTuning | None = BlockTuning(epochs=4, learning_rate=1e-3)  # type: ignore[misc]  # noqa: RUF009
    statistic = Hessian

    def quantize(self, weight: Tensor, statistic: Hessian) -> QuantizedTensor:
        return QuantizedTensor.round(weight, self.grid)


def finished(dtype: torch.dtype) -> tuple[nn.Module, Finished]:
    """A model whose first block is compressed, and that block with its inputs and what it made of them when it was dense."""
    model, dense = tiny_model("qwen3-tied").to(dtype), tiny_model("qwen3-tied").to(dtype)
    Tuned(tuning=None).compress(model, Calibration(TOKENS))
    blocks = find_blocks(model)
    inputs, arguments = enter(model, blocks, TOKENS)
    with block_at(find_blocks(dense)[0], arguments[0], torch.device("cpu")) as run, torch.no_grad():
        targets = enter(dense, find_blocks(dense), TOKENS)[0].through(run)
    with block_at(blocks[0], arguments[0], torch.device("cpu")) as run:
        return model, Finished(blocks[0], run, inputs, targets)


def held_out(it: Finished, windows: range) -> float:
    """Mean squared error of the block, in float64."""
    losses = []
    for index in windows:
        with torch.no_grad():
            output = it.run(it.inputs[index], torch.float32)
        losses.append((output.double() - it.targets[index].double()).square().mean())
    return torch.stack(losses).mean().item()


def state(block: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in block.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_lowers_the_error_on_windows_it_did_not_train_on(dtype: torch.dtype) -> None:
    _, it = finished(dtype)
    before, told = (
        held_out(it, range(6, 8)) if dtype == torch.float32 else None,
        BlockTuning(4, validation=0.25, learning_rate=1e-3).tune(it),
    )
    assert told.after < 0.9 * told.before
    assert told.epoch >= 1
    if before is not None:  # a block of bfloat16 is measured in float32, which `run` alone does not do to its parameters
        assert told.before == pytest.approx(before, rel=1e-4)
        assert told.after == pytest.approx(held_out(it, range(6, 8)), rel=1e-4)


def test_codes_and_dense_matrices_stay_and_numbers_move() -> None:
    _, it = finished(torch.bfloat16)
    before = state(it.block)
    BlockTuning(2, learning_rate=1e-3).tune(it)
    after = state(it.block)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert not any("codes" in name for name in moved)
    assert {"input_layernorm.weight", "self_attn.q_norm.weight"} <= moved
    assert any("scale" in name for name in moved)
    for layer in it.block.modules():
        if isinstance(layer, CompressedLinear):  # what is multiplied with is what is in the state dict
            value = layer.weight.value
            assert all(tensor is layer.weight.get_buffer(name) for name, tensor in value.state_dict().items())


def test_what_only_makes_worse_is_not_kept() -> None:
    _, it = finished(torch.float32)
    before = state(it.block)
    told = BlockTuning(3, patience=2, learning_rate=100.0).tune(it)
    assert told.epoch == 0
    assert told.after == told.before
    after = state(it.block)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_method_that_tunes_says_so_of_each_layer() -> None:
    plain, tuned = tiny_model("llama"), tiny_model("llama")
    Tuned(tuning=None).compress(plain, Calibration(TOKENS))
    report = Tuned().compress(tuned, Calibration(TOKENS))
    inside = [layer for layer in report.layers if "block_tuned" in layer.notes]
    assert [layer.name for layer in inside] == [layer.name for layer in report.layers]
    assert all(0 < layer.notes["block_tuned"] < 1 for layer in inside)
    with torch.no_grad():
        expected = tiny_model("llama")(TOKENS).logits
        errors = [(model(TOKENS).logits - expected).norm() for model in (plain, tuned)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("options", [{"epochs": 0}, {"patience": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"validation": 1.0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"tuning.{next(iter(options))}="):
        BlockTuning(**options)  # type: ignore[arg-type]
