"""A compressed head beside other methods: its product, what is stored, what stays as it is, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinq
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.rtn import RTN
from sinq import SINQ, CompressedHead, CompressedLinear, Context, Grid, Layers, NotApplicable
from sinq.model.targets import output_head
from tests.conftest import tiny_model

HEAD = RTN(Grid(8, 32))
TOKENS = torch.arange(2 * 40).reshape(2, 40) % 90
ARCHITECTURES = ("llama", "qwen3-tied", "moe", "gpt2", "opt")


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_last_states_times_the_rounded_head(architecture: str) -> None:
    dense, model = tiny_model(architecture), tiny_model(architecture)
    weight = output_head(dense).weight  # type: ignore[union-attr]
    CompressedHead(Dense(), HEAD).compress(model)
    rounded = HEAD.quantize(weight).dequantize()
    states: list[Tensor] = []
    output_head(dense).register_forward_pre_hook(lambda _, given: states.append(given[0]))  # type: ignore[union-attr]
    logits(dense)
    torch.testing.assert_close(logits(model), states[0] @ rounded.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.get_input_embeddings().weight, dense.get_input_embeddings().weight)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_has_the_codes_of_its_head(architecture: str, tmp_path: Path) -> None:
    model: Any = tiny_model(architecture)
    report = CompressedHead(SINQ(Grid(4, 32)), HEAD).compress(model)
    sinq.save(model, tmp_path / "saved")
    loaded = sinq.load(tmp_path / "saved")
    assert isinstance(output_head(loaded), CompressedLinear)
    assert torch.equal(logits(loaded), logits(model))
    head = report.parts[-1]
    tied = tiny_model(architecture).config.tie_word_embeddings
    assert head.decided == ({"tied_head_copied": 1.0} if tied else {})
    assert head.nbytes == HEAD.quantize(torch.randn(head.shape)).nbytes
    assert model.generate(TOKENS[:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 7)


def test_the_dense_model_that_shares_its_tensors_keeps_its_tie() -> None:
    from sinq.model.sharing import sparing_clone

    dense = tiny_model("qwen3-tied")
    CompressedHead(Dense(), HEAD).compress(sparing_clone(dense))
    assert dense.config.tie_word_embeddings
    assert dense.lm_head.weight is dense.get_input_embeddings().weight


def test_refusals_come_before_any_work() -> None:
    model = tiny_model("llama")
    with pytest.raises(NotApplicable, match="needs calibration text; give a method that needs none"):
        CompressedHead(Dense(), GPTQ(RTN(Grid(8, 32))))  # type: ignore[arg-type]
    with pytest.raises(NotApplicable, match="CompressedHead is not possible around another CompressedHead"):
        CompressedHead(CompressedHead(Dense(), HEAD), HEAD)
    with pytest.raises(NotApplicable, match=r"compressed by the inner method too; add it to layers\.exclude"):
        CompressedHead(SINQ(Grid(4, 32)), HEAD).compress(model, context=Context(layers=Layers(exclude=())))
    with pytest.raises(NotApplicable, match=r"the head lm_head .* does not fit"):
        CompressedHead(SINQ(Grid(4, 32)), RTN(Grid(8, 48))).compress(model)
    assert not any(isinstance(module, CompressedLinear) for module in model.modules())
