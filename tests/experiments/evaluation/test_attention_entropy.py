"""Entropy of attention, against the probabilities that eager attention returns, in float64."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from experiments.evaluation import AttentionEntropy, EvaluationContext
from experiments.evaluation.attention_entropy import mean_entropy, uniform
from experiments.models.source import sparing_clone
from sinq import SINQ, Grid
from tests.experiments.tiny import subject

OPTIONS = AttentionEntropy(windows=2, seqlen=32)


def by_hand(context: EvaluationContext) -> list[float]:
    """Entropies −Σ a ln a of each layer from the eager model's own probabilities."""
    eager = AutoModelForCausalLM.from_config(context.model.config, attn_implementation="eager").eval()
    eager.load_state_dict(context.model.state_dict())
    ids = context.tokens[:64].reshape(2, 32)
    with torch.inference_mode():
        attentions = eager(ids, output_attentions=True, use_cache=False).attentions
    return [float(torch.special.entr(each.double()).sum(-1).mean()) for each in attentions]


def test_it_is_the_entropy_of_eager_attention(architecture: str) -> None:
    context = subject(architecture)
    found = OPTIONS.measure(context)
    expected = by_hand(context)
    values = list(found.samples["entropy"].values())
    assert values == pytest.approx(expected, abs=1e-4)
    assert found.metrics["mean"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert (found.metrics["min"], found.metrics["max"]) == (min(values), max(values))
    assert (found.metrics["layers"], found.metrics["windows"], found.metrics["tokens"]) == (2, 2, 64)


def test_zero_scores_are_uniform_attention() -> None:
    context = subject("llama")
    for layer in context.model.model.layers:
        nn.init.zeros_(layer.self_attn.q_proj.weight)
    found = OPTIONS.measure(context)
    for value in found.samples["entropy"].values():
        assert value == pytest.approx(uniform(32), abs=1e-4)
    assert found.metrics["uniform"] == uniform(32)
    assert uniform(35) == pytest.approx(2.632, abs=1e-3)  # a reference value of JoMA's windows


def test_heads_are_averaged_after_the_entropy() -> None:
    heads = torch.eye(2)[None, :, None, :].expand(1, 2, 3, 2)  # each looks at one key, another one
    assert mean_entropy(heads).item() == pytest.approx(0, abs=1e-6)
    assert mean_entropy(heads.mean(1)).item() == pytest.approx(math.log(2), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(0, 1000), st.floats(0, 50))
def test_entropies_have_bounds(keys: int, seed: int, scale: float) -> None:
    scores = scale * torch.randn(1, 2, 3, keys, generator=torch.Generator().manual_seed(seed))
    assert -1e-5 <= mean_entropy(scores.softmax(-1)).item() <= math.log(keys) + 1e-5


def test_the_compressed_model_is_measured() -> None:
    dense = subject("llama")
    model: Any = sparing_clone(dense.model)
    context = replace(dense, model=model, report=SINQ(Grid(bits=2, group_size=32)).compress(model))
    before, after = (OPTIONS.measure(each).samples["entropy"] for each in (dense, context))
    assert before.keys() == after.keys()
    assert before != after


def test_a_model_without_such_attention_is_refused_before_work() -> None:
    context = subject("llama")
    context.model.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(ValueError, match=r"attention_entropy cannot be made of .*1 attentions .* 2 blocks"):
        OPTIONS.check(context)
    OPTIONS.check(subject("llama"))


@pytest.mark.parametrize("wrong", [{"windows": 0}, {"seqlen": 1}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.attention_entropy\.\w+=\d is not possible"):
        AttentionEntropy(**wrong)
