"""Rounded queries: attention against the definition, 16 bits as they are, decoding, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import sinq
from baselines.rtn import RTN
from sinq import Grid, KeyValueFormat, KeyValues, NotApplicable, StateFormat
from sinq.formats.key_values import Sharing
from sinq.model.attention import head_shapes
from sinq.model.edits import edit
from sinq.model.key_value_edits import RoundKeyValues
from sinq.model.rounded_queries import BEFORE, attend, require_reached, round_queries
from tests.conftest import tiny_model, tiny_tokens

TOKENS = tiny_tokens()
EIGHT = StateFormat(8)


def logits(model: Any, tokens: Tensor = TOKENS, **options: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens, **options).logits
    return found


def rounded(architecture: str, format: KeyValueFormat) -> Any:
    model = tiny_model(architecture)
    for name, (heads, width) in head_shapes(model).items():
        edit(model, RoundKeyValues(name, heads, width, format.as_json()))
    return model


def by_definition(x: Tensor, bits: int) -> Tensor:
    """Asymmetric codes of a token's head in float64, with a scale of float16 and 0 in the range."""
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).half().double()
    zero = (-low.double() / scale).round()
    return ((x.double() / scale + zero).round().clamp(0, 2**bits - 1) - zero) * scale


@pytest.mark.parametrize("bits", [8, 4])
def test_attention_gets_the_definition_s_queries(bits: int) -> None:
    model = rounded("llama", KeyValueFormat(EIGHT, EIGHT, queries=StateFormat(bits)))
    module = model.model.layers[0].self_attn
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 7, 16, generator=generator) for _ in range(3))
    found, _ = attend(module, query, key, value, None, scaling=0.25)
    wide = [x.double() for x in (key, value)]
    expected = scaled_dot_product_attention(by_definition(query, bits), *wide, is_causal=True, scale=0.25)
    torch.testing.assert_close(found.transpose(1, 2).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3-tied", "moe", "gpt2", "opt"])
def test_every_attention_sees_rounded_queries(architecture: str) -> None:
    """Two bits move every model's logits, eight hardly, and 16 not at all: then nothing is installed."""
    plain = rounded(architecture, KeyValueFormat(EIGHT, EIGHT))
    assert not any(hasattr(part, BEFORE) for part in plain.modules())
    before = logits(plain)

    def difference(bits: int) -> float:
        found = logits(rounded(architecture, KeyValueFormat(EIGHT, EIGHT, queries=StateFormat(bits))))
        return float((found - before).norm() / before.norm())

    assert 0 < difference(8) < 0.2 * difference(2)


def test_a_rotation_of_both_changes_no_scores() -> None:
    """Eight bits after the transform are near eight bits before, for keys and queries alike."""
    query = torch.randn(1, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    model = rounded("llama", KeyValueFormat(EIGHT, EIGHT, rotate=True, queries=EIGHT))
    store = model.model.layers[0].self_attn.key_value_store
    found = store.rounded_queries(query)
    assert not torch.equal(found, by_definition(query, 8).float())
    assert 0 < (found - query).norm() < 0.02 * query.norm()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_one_pass_equals_token_by_token(implementation: str) -> None:
    model = tiny_model("llama").double()
    model.set_attn_implementation(implementation)
    for name, (heads, width) in head_shapes(model).items():
        format = KeyValueFormat(StateFormat(4), StateFormat(4), queries=StateFormat(4))
        edit(model, RoundKeyValues(name, heads, width, format.as_json()))
    whole, cache, parts = logits(model), None, []
    for token in TOKENS.T:
        with torch.no_grad():
            step = model(token[:, None], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-6, rtol=1e-6)


def test_it_is_a_method_s_option_and_kept_with_the_model(tmp_path: Path) -> None:
    method = KeyValues(RTN(Grid(8, 32)), KeyValueFormat(EIGHT, EIGHT, queries=StateFormat(4)))
    model = tiny_model("llama")
    assert method.compress(model).method == "RTN 8-bit g32 KV8 Q4"
    sinq.save(model, tmp_path / "model")
    assert torch.equal(logits(sinq.load(tmp_path / "model")), logits(model))


def test_files_of_before_have_no_queries() -> None:
    options = KeyValueFormat(EIGHT, EIGHT).as_json()
    del options["queries"]
    assert KeyValueFormat.from_json(options) == KeyValueFormat(EIGHT, EIGHT)


def test_what_is_not_possible_is_refused() -> None:
    with pytest.raises(NotApplicable, match="queries are rounded token by token"):
        KeyValueFormat(EIGHT, EIGHT, queries=StateFormat(4, Sharing.head))
    with pytest.raises(NotApplicable, match=r"kv\.queries\.bits=4 is not possible where keys and values"):
        KeyValueFormat(queries=StateFormat(4))
    model = tiny_model("llama")
    model.model.layers[1].self_attn.config = object()
    with pytest.raises(NotApplicable, match="KV8 Q8: queries cannot be rounded; LlamaForCausalLM"):
        require_reached(model, "KV8 Q8")
    with pytest.raises(ValueError, match="LlamaAttention does not choose its attention by the configuration"):
        round_queries(model.model.layers[1].self_attn)


def test_gradients_are_refused() -> None:
    model = rounded("llama", KeyValueFormat(EIGHT, EIGHT, queries=EIGHT))
    store = model.model.layers[0].self_attn.key_value_store
    with pytest.raises(ValueError, match="gradients do not pass through rounded queries"):
        store.rounded_queries(torch.ones(1, 4, 1, 16, requires_grad=True))
