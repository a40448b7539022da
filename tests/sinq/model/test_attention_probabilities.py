"""Attention probabilities: against those that eager attention returns, and torch's own attention."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sinq.model.attention_probabilities import Probabilities, attended
from tests.conftest import CONFIGS

TOKENS = torch.arange(2 * 20).reshape(2, 20) % 90


def model(architecture: str, attention: str) -> Any:
    torch.manual_seed(0)
    config = deepcopy(CONFIGS[architecture])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("architecture", ["llama", "qwen3-tied", "gpt2", "opt"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_they_are_what_eager_attention_returns(architecture: str, attention: str) -> None:
    expected = model(architecture, "eager")(TOKENS, output_attentions=True, use_cache=False)
    seeing = model(architecture, attention)
    with Probabilities() as probabilities:
        found = seeing(TOKENS, use_cache=False)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert len(probabilities.seen) == 2
    for seen, each in zip(probabilities.seen, expected.attentions, strict=True):
        torch.testing.assert_close(seen, each.mean(1), rtol=1e-4, atol=1e-6)


MASK = torch.rand(1, 1, 6, 9, generator=torch.Generator().manual_seed(0)) > 0.3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"attn_mask": MASK},
        {"attn_mask": torch.where(MASK, 0.5, -3.0)},
        {"is_causal": True},
        {"enable_gqa": True},
    ],
)
def test_the_definition_is_torchs(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    heads = 2 if options.get("enable_gqa") else 4
    queries = torch.randn(3, 4, 6, 8, generator=generator, dtype=torch.float64)
    keys, values = (torch.randn(3, heads, 9, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    given = {
        key: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for key, v in options.items()
    }
    expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, **given)
    probabilities, spread = attended(queries, keys, values, **given)
    torch.testing.assert_close(probabilities @ spread, expected)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 4, 6, dtype=torch.float64))


def test_gradients_pass() -> None:
    queries = torch.randn(1, 2, 4, 8, requires_grad=True)
    with Probabilities() as probabilities:
        torch.nn.functional.scaled_dot_product_attention(queries, queries, queries, is_causal=True)
    probabilities.seen[0][..., 0].sum().backward()
    assert queries.grad is not None
    assert queries.grad.abs().sum() > 0
