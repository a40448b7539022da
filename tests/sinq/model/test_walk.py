"""The walk through blocks: its inputs, its advance through rewritten blocks, a third-party block method."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from baselines.gptq import GPTQ
from baselines.rtn import RTN
from sinq import (
    BlockMethod,
    BlockView,
    Calibration,
    CompressedLinear,
    Context,
    Grid,
    NotApplicable,
    PartReport,
    walk,
)
from sinq.model.blocks import find_blocks
from tests.conftest import tiny_model, tiny_tokens
from tests.sinq.architectures.tiny import tiny
from tests.sinq.architectures.tiny import tokens as architecture_tokens

TOKENS = tiny_tokens(3)


def block_inputs(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    """What each block is given in an ordinary forward pass, (windows, seqlen, hidden)."""
    caught: list[list[Tensor]] = [[] for _ in find_blocks(model)]
    handles = [
        block.register_forward_pre_hook(lambda _, args, into=into: into.append(args[0]))
        for block, into in zip(find_blocks(model), caught, strict=True)
    ]
    for window in tokens:
        model(window[None])
    for handle in handles:
        handle.remove()
    return [torch.cat(states) for states in caught]


def double(block: nn.Module) -> None:
    """Double all a block adds to its inputs, by its last norms."""
    for parameter in block.parameters():
        if parameter.ndim == 1:
            parameter.mul_(2)


@torch.no_grad()
def test_a_visitor_that_changes_nothing_sees_the_model_as_it_is(architecture: str) -> None:
    model, expected = tiny_model(architecture), block_inputs(tiny_model(architecture), TOKENS)
    for block in walk(model, TOKENS):
        assert block.module is find_blocks(model)[block.index]
        assert torch.equal(torch.cat(list(block.inputs)), expected[block.index])
    assert block.index == len(expected) - 1


@torch.no_grad()
def test_it_advances_through_what_a_block_has_become() -> None:
    model, changed = tiny_model("llama"), tiny_model("llama")
    double(find_blocks(changed)[0])
    seen = []
    for block in walk(model, TOKENS):
        seen.append(torch.cat(list(block.inputs)))
        double(block.module)
    assert torch.equal(seen[1], block_inputs(changed, TOKENS)[1])
    assert not torch.equal(seen[1], block_inputs(tiny_model("llama"), TOKENS)[1])


@torch.no_grad()
def test_what_was_settled_before_a_change_stays() -> None:
    model, seen = tiny_model("llama"), []
    for block in walk(model, TOKENS):
        seen.append(torch.cat(list(block.inputs)))
        settled = block.advance()
        double(block.module)
        assert block.advance() is settled
    assert torch.equal(seen[1], block_inputs(tiny_model("llama"), TOKENS)[1])


@torch.no_grad()
def test_every_step_is_shown_with_its_block_and_nowhere_else() -> None:
    model = tiny_model("llama")
    steps = RTN(Grid(4, 32)).plan(model, None, Context()).steps
    for block in walk(model, TOKENS, steps=steps):
        assert [step.target.name for step in block.steps] == [
            step.target.name for step in steps if f".layers.{block.index}." in step.target.name
        ]
        assert len(block.steps) == 7


@torch.no_grad()
def test_a_visitor_that_fails_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    blocks = walk(model, TOKENS)
    next(blocks)
    with pytest.raises(KeyError):
        blocks.throw(KeyError())
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


@dataclass(frozen=True)
class WithoutMlp(BlockMethod):
    """Third-party method: drop the MLP of a block where its output changes by less than a share."""

    share: float

    def compress_block(self, block: BlockView) -> list[PartReport]:
        before = block.outputs()
        mlp, block.module.mlp = block.module.mlp, nn.Identity()
        block.module.mlp.forward = torch.zeros_like
        change = sum(
            (new - old).norm() / old.norm() for new, old in zip(block.outputs(), before, strict=True)
        ) / len(before)
        if change > self.share:
            block.module.mlp = mlp
            return []
        return [PartReport("block", f"block {block.index}", 0, 0, 0, change.item(), 0.0)]


def test_a_method_of_blocks_is_its_compress_block() -> None:
    model, dense, calibration = tiny_model("llama"), tiny_model("llama"), Calibration(TOKENS)
    assert WithoutMlp(0.0).compress(model, calibration).parts == ()
    assert torch.equal(model(TOKENS).logits, dense(TOKENS).logits)
    report = WithoutMlp(1.0).compress(model, calibration)
    assert [layer.name for layer in report.parts] == ["block 0", "block 1"]
    assert report.seconds_statistics > 0
    assert not torch.equal(model(TOKENS).logits, dense(TOKENS).logits)
    assert WithoutMlp(1.0).needs_calibration
    with pytest.raises(NotApplicable, match="WithoutMlp needs calibration text"):
        WithoutMlp(1.0).compress(model)


def dropping(name: str) -> nn.Module:
    """A model in training mode whose dropout would change what is seen."""
    model = tiny_model(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.config.attention_dropout = 0.5
    return model.train()


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_blocks_are_walked_in_evaluation_mode_and_get_back_theirs(name: str) -> None:
    model = dropping(name)
    model.get_submodule(
        next(key for key, part in model.named_modules() if isinstance(part, nn.Linear))
    ).eval()
    modes = [module.training for module in model.modules()]
    expected = block_inputs(tiny_model(name), TOKENS)
    for block in walk(model, TOKENS):
        assert torch.equal(torch.cat(list(block.inputs)), expected[block.index])
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xlm", r"inputs then differ by \d"),  # its list with most parameters is of one half of each block
        ("hrm_text", "do not run once each, in order"),  # it is a loop
        ("reformer", "TypeError"),  # its blocks are run by an autograd function
    ],
)
def test_blocks_that_cannot_run_alone_are_refused_before_work(name: str, reason: str) -> None:
    model, tokens = tiny(name), architecture_tokens()
    with pytest.raises(NotApplicable, match=f"blocks of .* cannot run one by one.*{reason}"):
        GPTQ(RTN(Grid(8, 16))).compress(model, Calibration(tokens))
    assert not any(isinstance(module, CompressedLinear) for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no ModuleList of blocks"):
        next(walk(nn.Linear(2, 2), TOKENS))
