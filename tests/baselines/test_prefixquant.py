"""PrefixQuant: detection against brute force, the rule for the prefix, and what a prefix does to a model."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sinq
from baselines.dense import Dense
from baselines.hadamard import ResidualHadamard
from baselines.prefixquant import Prefix
from baselines.prefixquant.detection import Detection, detect, watched_modules
from baselines.rtn import RTN
from sinq import (
    Calibration,
    CompressedLinear,
    CompressedWeight,
    Context,
    Grid,
    KeyValueFormat,
    KeyValues,
    NotApplicable,
    Rotated,
    StateFormat,
)
from sinq.model.edits import edits
from sinq.model.key_value_edits import PrefixKeyValues, ShiftPositions
from tests.conftest import tiny_model

ARCHITECTURES = ("llama", "qwen3-tied", "moe", "gpt2", "opt")
TOKENS = torch.arange(3 * 24).reshape(3, 24) % 90
TEXT = Calibration(TOKENS)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ratios_are_those_of_hooks(architecture: str) -> None:
    model, seen = tiny_model(architecture), {}
    found = detect(model, TOKENS, 2.0, Context())
    for name in watched_modules(model):
        module = model.get_submodule(name)
        hook = module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, args[0]))
        logits(model)
        hook.remove()
    for ratios, inputs in zip(found.ratios, seen.values(), strict=True):
        largest = inputs.reshape(3, 24, -1).abs().amax(-1)
        expected = largest / largest.median(dim=1, keepdim=True).values
        torch.testing.assert_close(ratios, expected, rtol=1e-4, atol=1e-5)


def detection(outliers: Tensor, tokens: Tensor) -> Detection:
    return Detection(torch.where(outliers, 100.0, 1.0), tokens, 64.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_prefix_is_that_of_the_rule(seed: int) -> None:
    """Brute force over blocks, windows and positions."""
    generator = torch.Generator().manual_seed(seed)
    outliers = torch.rand(3, 6, 10, generator=generator) < 0.15
    tokens = torch.randint(2, 7, (6, 10), generator=generator)
    found = detection(outliers, tokens)
    seen: Counter[int] = Counter()
    for block in range(3):
        for window in range(6):
            for position in range(1, 10):
                if outliers[block, window, position]:
                    seen[int(tokens[window, position])] += 1
    count = math.ceil(max(sum(outliers[block].sum(1).tolist()) / 6 for block in range(3)))
    assert found.candidates() == seen
    *chosen, last = found.prefix(1, 0.1)
    assert last == 1
    assert len(chosen) == min(count, len(seen))
    left = [seen[token] for token in seen if token not in chosen]
    assert all(seen[token] >= max(left, default=0) for token in chosen)


def test_corner_cases_of_the_rule() -> None:
    tokens = torch.arange(200).reshape(20, 10) % 50
    none = torch.zeros(1, 20, 10, dtype=torch.bool)
    assert detection(none, tokens).prefix(1, 0.1) == [1]
    first = none.clone()
    first[0, :, 0] = True
    assert detection(first, tokens).prefix(1, 0.1) == [1]  # the first token is an outlier whatever it is
    rare = first.clone()
    rare[0, 0, 5] = True
    assert detection(rare, tokens).prefix(1, 0.1) == [1]
    assert detection(rare, tokens).prefix(1, 0.0) == [5, 1]
    assert detection(rare, tokens).prefix(5, 0.0) == [5]  # the token that begins texts stands once


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_behind_the_prefix_is_that_of_longer_texts(architecture: str, tmp_path: Path) -> None:
    dense, model = tiny_model(architecture), tiny_model(architecture)
    report = Prefix(Dense(), tokens=(4, 7)).compress(model)
    whole = torch.cat([torch.tensor([[4, 7]]).expand(3, -1), TOKENS], 1)
    with torch.no_grad():
        expected = dense(whole).logits[:, 2:]
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-4)
    assert [decision.value for decision in report.parts[-1].decisions] == [4, 7]
    assert report.parts[-1].nbytes == sum(
        tensor.nbytes for name, tensor in model.state_dict().items() if "prefix" in name
    )
    sinq.save(model, tmp_path)
    assert torch.equal(logits(sinq.load(tmp_path)), logits(model))


def test_statistics_are_taken_behind_the_prefix() -> None:
    """The inner method sees the text as it is in the finished model."""
    static = KeyValueFormat(StateFormat(8, sinq.formats.key_values.Sharing.head), StateFormat(8))
    inside, outside = tiny_model("llama"), tiny_model("llama")
    Prefix(KeyValues(RTN(Grid(group_size=32)), static), tokens=(4, 7)).compress(inside, TEXT)
    KeyValues(Prefix(RTN(Grid(group_size=32)), tokens=(4, 7)), static).compress(outside, TEXT)
    assert torch.equal(logits(inside), logits(outside))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_detected_tokens_are_reported_and_installed(architecture: str) -> None:
    model = tiny_model(architecture)
    model.config.bos_token_id = 1
    report = Prefix(RTN(Grid(group_size=32)), threshold=1.2).compress(model, TEXT)
    found = report.parts[-1].decided
    tokens = [value for name, value in found.items() if name.startswith("prefix_token")]
    assert tokens[-1] == 1
    assert found["largest_ratio"] > 1.2
    assert {PrefixKeyValues, ShiftPositions} <= set(map(type, edits(model)))


def test_what_has_no_prefix_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(NotApplicable, match="found on calibration text"):
        Prefix(Dense()).compress(model)
    with pytest.raises(NotApplicable, match="around another Prefix"):
        Prefix(Prefix(Dense(), tokens=(1,)), tokens=(1,)).compress(model)
    known, positions = model.config.vocab_size, model.config.max_position_embeddings
    with pytest.raises(NotApplicable, match=f"has {known}; LlamaForCausalLM knows ids below {known}"):
        Prefix(Dense(), tokens=(1, known)).compress(model)
    with pytest.raises(NotApplicable, match=f"leave none of the {positions} positions"):
        Prefix(Dense(), tokens=(1,) * positions).compress(model)
    model = tiny_model("llama")
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(NotApplicable, match="neither bos_token_id nor eos_token_id"):
        Prefix(Dense()).compress(model, TEXT)
    Prefix(Dense(), tokens=(4,)).compress(model)  # it needs none then
    with pytest.raises(ValueError, match=r"method\.threshold=1"):
        Prefix(Dense(), threshold=1.0)


def test_a_rotated_model_has_the_prefix_of_longer_texts() -> None:
    """The prefix is made of the rotated model, and R4 reaches the method of layers inside."""
    dense, model = tiny_model("llama"), tiny_model("llama")
    method = ResidualHadamard(Prefix(RTN(Grid(8, 32)), tokens=(4, 7)), values=True, down=True)
    method.compress(model)
    whole = torch.cat([torch.tensor([[4, 7]]).expand(3, -1), TOKENS], 1)
    with torch.no_grad():
        expected = dense(whole).logits[:, 2:]
    assert (logits(model) - expected).norm() < 0.02 * expected.norm()
    down = [value for name, value in compressed(model).items() if name.endswith("down_proj")]
    assert all(isinstance(value, Rotated) for value in down)


def compressed(model: nn.Module) -> dict[str, CompressedWeight]:
    parts = model.named_modules()
    return {name: part.weight.value for name, part in parts if isinstance(part, CompressedLinear)}
