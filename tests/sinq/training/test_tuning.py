"""Tuning of a block: trained and frozen numbers, and that nothing it keeps is worse where it was measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from baselines.gptq import GPTQ
from baselines.rtn import RTN
from sinq import (
    BlockMethod,
    BlockTuning,
    BlockView,
    Calibration,
    Context,
    Grid,
    LayerMethod,
    Layers,
    NotApplicable,
    PartReport,
    Tuned,
    walk,
)
from sinq.model.blocks import HiddenStates
from sinq.model.linear import CompressedLinear
from tests.conftest import tiny_model, tiny_tokens

TOKENS = tiny_tokens(8)
ROUNDING = RTN(Grid(bits=2, group_size=32, auxiliary_bits=16))
SHORT = BlockTuning(epochs=4, learning_rate=1e-3)


@contextmanager
def compressed(dtype: torch.dtype) -> Iterator[tuple[BlockView, HiddenStates]]:
    """The first block of a model, compressed, and what the dense block makes of its inputs."""
    model = tiny_model("qwen3-tied").to(dtype)
    blocks = walk(model, TOKENS, steps=ROUNDING.plan(model, None, Context()).steps)
    with torch.no_grad():
        block = next(blocks)
        targets = block.outputs()
        ROUNDING.compress_block(block)
        yield block, targets
    blocks.close()


def held_out(block: BlockView, targets: HiddenStates, windows: range) -> float:
    """Mean squared error of the block, in float64."""
    losses = []
    for index in windows:
        output = block.run(block.inputs[index], index, torch.float32)
        losses.append((output.double() - targets[index].double()).square().mean())
    return torch.stack(losses).mean().item()


def state(block: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in block.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_lowers_the_error_on_windows_it_did_not_train_on(dtype: torch.dtype) -> None:
    with compressed(dtype) as (block, targets):
        # a block of bfloat16 is tuned in float32, which `run` alone does not do to its parameters
        exact = dtype == torch.float32
        before = held_out(block, targets, range(6, 8)) if exact else None
        result = BlockTuning(4, validation=0.25, learning_rate=1e-3).tune(block, targets)
        assert result.after < 0.9 * result.before
        assert result.epoch >= 1
        if before is not None:
            assert result.before == pytest.approx(before, rel=1e-4)
            assert result.after == pytest.approx(held_out(block, targets, range(6, 8)), rel=1e-4)


def test_codes_and_dense_matrices_stay_and_numbers_move() -> None:
    with compressed(torch.bfloat16) as (block, targets):
        before = state(block.module)
        BlockTuning(2, learning_rate=1e-3).tune(block, targets)
        after = state(block.module)
    assert list(before) == list(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert not any("codes" in name for name in moved)
    assert {"input_layernorm.weight", "self_attn.q_norm.weight"} <= moved
    assert any("scale" in name for name in moved)
    for layer in block.module.modules():
        if isinstance(layer, CompressedLinear):  # what is multiplied with is what is in the state dict
            value = layer.weight.value
            assert all(tensor is layer.weight.get_buffer(name) for name, tensor in value.state_dict().items())


def test_what_only_makes_worse_is_not_kept() -> None:
    with compressed(torch.float32) as (block, targets):
        before = state(block.module)
        result = BlockTuning(3, patience=2, learning_rate=100.0).tune(block, targets)
        after = state(block.module)
    assert result.epoch == 0
    assert result.after == result.before
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_failure_while_it_computes_leaves_the_block_as_it_was() -> None:
    with compressed(torch.bfloat16) as (block, _):
        parameters, values = dict(block.module.named_parameters()), state(block.module)
        with pytest.raises(IndexError):
            BlockTuning(1).tune(block, HiddenStates())
        after = dict(block.module.named_parameters())
        assert all(after[name] is parameter for name, parameter in parameters.items())
        assert all(torch.equal(tensor, values[name]) for name, tensor in block.module.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "inner"),  # fused experts show GPTQ no inputs
    [("llama", ROUNDING), ("moe", ROUNDING), ("llama", GPTQ(RTN(ROUNDING.grid)))],
    ids=["rtn", "rtn of experts", "gptq"],
)
def test_a_tuned_method_is_nearer_the_dense_model_and_says_so_of_each_layer(
    architecture: str, inner: LayerMethod
) -> None:
    plain, tuned, dense = (tiny_model(architecture) for _ in range(3))
    untuned = inner.compress(plain, Calibration(TOKENS))
    report = Tuned(inner, SHORT).compress(tuned, Calibration(TOKENS))
    assert {layer.name for layer in report.parts} == {layer.name for layer in untuned.parts}
    assert all(0 < layer.decided["block_tuned"] < 1 for layer in report.parts)
    before = {layer.name: layer for layer in untuned.parts}
    assert any(layer.relative_error != before[layer.name].relative_error for layer in report.parts)
    with torch.no_grad():
        expected = dense(TOKENS).logits
        errors = [(model(TOKENS).logits - expected).norm() for model in (plain, tuned)]
    assert errors[1] < errors[0]


def test_a_head_is_compressed_and_not_tuned() -> None:
    model = tiny_model("llama")
    report = Tuned(ROUNDING, SHORT).compress(model, Calibration(TOKENS), Context(Layers(exclude=())))
    assert report.parts[-1].name == "lm_head"
    assert "block_tuned" not in report.parts[-1].decided
    assert isinstance(model.lm_head, CompressedLinear)


@dataclass(frozen=True)
class Louder(BlockMethod):
    """Changes numbers of a block, and has no plan."""

    size: int

    def compress_block(self, block: BlockView) -> list[PartReport]:
        gain = block.module.input_layernorm
        gain.weight = nn.Parameter(1.1 * gain.weight, requires_grad=False)
        return [PartReport("block", f"block {block.index}", self.size, self.size, 4, 0.1, 0.0)]


@pytest.mark.parametrize("size", [0, 1])  # a report need not be of a matrix
def test_it_tunes_what_a_method_of_blocks_left(size: int) -> None:
    report = Tuned(Louder(size), BlockTuning(learning_rate=1e-2)).compress(
        tiny_model("llama"), Calibration(TOKENS)
    )
    assert [layer.name for layer in report.parts] == ["block 0", "block 1"]
    assert all(layer.decided["block_tuned"] < 0.5 for layer in report.parts)
    assert all((layer.seconds > 0) == (size > 0) for layer in report.parts)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "Tuned needs calibration text: it works from what each block computes"),
        (
            Calibration(TOKENS, sequential=False),
            r"Tuned works on each block .* calibration\.sequential=false never runs",
        ),
    ],
)
def test_without_blocks_to_run_it_is_refused_before_any_work(
    calibration: Calibration | None, message: str
) -> None:
    model = tiny_model("llama")
    with pytest.raises(NotApplicable, match=message):
        Tuned(ROUNDING).compress(model, calibration)
    assert not any(isinstance(module, CompressedLinear) for module in model.modules())


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"patience": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"validation": 1.0}]
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"tuning.{next(iter(options))}="):
        BlockTuning(**options)  # type: ignore[arg-type]
