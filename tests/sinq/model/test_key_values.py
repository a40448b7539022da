"""Keys and values: rounded once, one pass equals token by token, a prefix equals concatenated ids."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM, MistralConfig, StaticCache

import sinq
from sinq import KeyValueFormat, NotApplicable, StateFormat
from sinq.formats.key_values import Sharing, StoredStates
from sinq.model.attention import attentions, cache_argument, head_shapes, kept_layers
from sinq.model.cache_size import cache_nbytes_per_token
from sinq.model.edits import edit, unexplained
from sinq.model.key_value_edits import PrefixKeyValues, RoundKeyValues, ShiftPositions, key_value_stores
from sinq.model.key_value_layer import Columns, KeyValueLayer
from sinq.model.key_values import KeyValueStore
from tests.conftest import tiny_model

ARCHITECTURES = ("llama", "qwen3-tied", "moe", "gpt2", "opt")
CACHE = str(cache_argument(LlamaForCausalLM))
TOKENS = torch.arange(2 * 40).reshape(2, 40) % 90
FORMATS = (
    KeyValueFormat(StateFormat(4), StateFormat(4)),
    KeyValueFormat(StateFormat(2, Sharing.channel, 8), StateFormat(3, group_size=8), window=5),
    KeyValueFormat(values=StateFormat(8, symmetric=True), window=3),
    KeyValueFormat(StateFormat(3, clip_ratio=0.9), StateFormat(2), rotate=True),
)
by_label = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.label)


def exact(architecture: str) -> Any:
    """A small model in float64, where its code allows it, so that noise moves no code."""
    model = tiny_model(architecture)
    return model if architecture == "moe" else model.double()


def rounded(model: Any, format: KeyValueFormat, ids: Sequence[int] = ()) -> Any:
    """Round keys and values, behind a prefix of ids if there are any."""
    shapes = head_shapes(model)
    model = prefixed(model, ids) if ids else model
    for name, (heads, width) in shapes.items():
        edit(model, RoundKeyValues(name, heads, width, format.as_json()))
    return model


def prefixed(model: Any, ids: Sequence[int]) -> Any:
    shapes, kept = head_shapes(model), kept_layers(model, torch.tensor([ids]))
    for name, (heads, width) in shapes.items():
        edit(model, PrefixKeyValues(name, heads, width, len(ids)))
    edit(model, ShiftPositions(len(ids)))
    for name, store in key_value_stores(model).items():
        layer = kept[model.get_submodule(name).layer_idx]
        store.begin_with(layer.keys[0].clone(), layer.values[0].clone())
    return model


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor, **options: Any) -> Tensor:
    found: Tensor = model(ids, **options).logits
    return found


@torch.no_grad()
def token_by_token(model: Any, ids: Tensor, first: int = 1) -> Tensor:
    cache = DynamicCache()
    parts = [model(ids[:, :first], **{CACHE: cache}, use_cache=True).logits]
    parts += [
        model(ids[:, i : i + 1], **{CACHE: cache}, use_cache=True).logits for i in range(first, ids.shape[1])
    ]
    return torch.cat(parts, 1)


@by_label
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_pass_equals_token_by_token(architecture: str, format: KeyValueFormat) -> None:
    model = rounded(exact(architecture), format)
    one = logits(model, TOKENS, use_cache=False)
    for first in (1, 7, 40):
        torch.testing.assert_close(token_by_token(model, TOKENS, first), one, rtol=1e-4, atol=1e-4)
    assert (one - logits(exact(architecture), TOKENS)).abs().max() > 1e-4


@by_label
def test_attention_sees_what_a_naive_cache_would_hold(format: KeyValueFormat) -> None:
    """Brute force: for each query alone, the keys and values of the definition, without mask or cache."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3, 20, 16, generator=generator) for _ in range(2))
    queries = torch.randn(2, 3, 20, 16, generator=generator)
    layer, store = layer_of(format, heads=3, width=16)
    mask = layer.columns(20).mask(None, keys.device)
    seen = layer.update(keys, values)
    causal = mask is None
    found = nn.functional.scaled_dot_product_attention(queries, *seen, attn_mask=mask, is_causal=causal)
    for i in range(20):
        old = format.rounded(i + 1)
        stored = store.decode(store.encode(keys[:, :, :old], values[:, :, :old]), torch.float32)
        pair = [torch.cat([a, b[:, :, old : i + 1]], 2) for a, b in zip(stored, (keys, values), strict=True)]
        query = queries[:, :, i : i + 1]
        expected = nn.functional.scaled_dot_product_attention(query, *pair)
        torch.testing.assert_close(found[:, :, i : i + 1], expected, rtol=1e-4, atol=1e-5)


def layer_of(format: KeyValueFormat, heads: int, width: int) -> tuple[KeyValueLayer, Any]:
    store = KeyValueStore(heads, width)
    store.round_by(format)
    return KeyValueLayer(store), store


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    sharing=st.sampled_from([Sharing.token, Sharing.channel]),
    symmetric=st.booleans(),
    unit=st.integers(-6, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_stored_states_are_the_nearest_levels(
    bits: int, sharing: Sharing, symmetric: bool, unit: int, seed: int
) -> None:
    """Against every level that a code may have; the unit of the numbers does not matter."""
    format = StateFormat(bits, sharing, 8, symmetric)
    x = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(seed)) * 2.0**unit
    stored = StoredStates.of(format, x)
    assert stored.scale is not None
    assert stored.scale.dtype == torch.float16
    half = 2 ** (bits - 1)
    levels = torch.arange(-half, half).float()
    zero = torch.zeros_like(stored.scale) if stored.zero is None else stored.zero
    values = (levels - zero.float()) * stored.scale.float()  # (…, 1, levels) against the last dimension
    grouped = format.grouped(x)
    distance = (grouped[..., None] - values[..., None, :]).abs().amin(-1)
    error = (grouped - format.grouped(stored.read(torch.float32))).abs()
    assert (error <= distance * (1 + 1e-4) + 1e-6 * 2.0**unit).all()
    assert stored.codes.numel() == x.numel() * bits // 8


@pytest.mark.parametrize("count", [1, 5, 13, 40])
@by_label
def test_tokens_are_rounded_once_and_stay(format: KeyValueFormat, count: int) -> None:
    """What is stored of a token does not change when others come."""
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(1, 2, 40, 16, generator=generator) for _ in range(2))
    early, late = (layer_of(format, 2, 16)[0] for _ in range(2))
    early.update(keys[:, :, :count], values[:, :, :count])
    late.update(keys, values)
    old = format.rounded(count)
    for a, b in zip(early._stored or (), late._stored or (), strict=False):
        assert torch.equal(a.read(torch.float32), b.read(torch.float32)[:, :, :old])
    assert early.get_seq_length() == count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@by_label
def test_a_saved_model_is_the_same(architecture: str, format: KeyValueFormat, tmp_path: Path) -> None:
    model = rounded(tiny_model(architecture), format)
    assert not unexplained(model)
    sinq.save(model, tmp_path)
    assert torch.equal(logits(sinq.load(tmp_path), TOKENS), logits(model, TOKENS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prefix_equals_concatenated_ids(architecture: str, attention: str) -> None:
    model, ids = exact(architecture), [3, 5, 7]
    model.set_attn_implementation(attention)
    whole = torch.cat([torch.tensor([ids]).expand(2, -1), TOKENS], 1)
    expected = logits(model, whole)[:, len(ids) :]
    other = prefixed(copy.deepcopy(model), ids)
    torch.testing.assert_close(logits(other, TOKENS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(token_by_token(other, TOKENS), expected, rtol=1e-4, atol=1e-5)
    assert (logits(model, TOKENS) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prefix_is_not_changed_by_use_and_is_saved(architecture: str, tmp_path: Path) -> None:
    model = prefixed(tiny_model(architecture), [3, 5, 7])
    before = {name: buffer.clone() for name, buffer in model.state_dict().items()}
    first = logits(model, TOKENS)
    assert torch.equal(logits(model, TOKENS), first)
    token_by_token(model, TOKENS)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.state_dict().items())
    sinq.save(model, tmp_path)
    assert torch.equal(logits(sinq.load(tmp_path), TOKENS), first)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_equals_full_recomputation(architecture: str, beams: int) -> None:
    model = rounded(tiny_model(architecture), FORMATS[1], [3, 5])
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams}
    options |= {"pad_token_id": 0, "eos_token_id": None}
    found = model.generate(TOKENS[:, :9], use_cache=True, **options)
    again = model.generate(TOKENS[:, :9], use_cache=False, **options)
    assert torch.equal(found, again)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_on_the_left_changes_nothing(architecture: str) -> None:
    """Rounded token by token, a padded text has the numbers of the text alone; positions are given."""
    model = rounded(exact(architecture), FORMATS[0], [3, 5])
    short, pads = TOKENS[:1, :30], 6
    padded = torch.cat([torch.zeros(1, pads, dtype=torch.long), short], 1)
    mask = torch.ones_like(padded)
    mask[:, :pads] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = logits(model, padded, attention_mask=mask, position_ids=positions)[:, pads:]
    torch.testing.assert_close(found, logits(model, short), rtol=1e-3, atol=1e-3)


def test_bytes_per_token_are_those_of_the_tensors() -> None:
    model = tiny_model("llama")
    (heads, width), blocks = next(iter(head_shapes(model).values())), len(attentions(model))
    numbers = 2 * blocks * heads * width
    assert cache_nbytes_per_token(model, torch.bfloat16) == 2 * numbers
    scales = 3 * 2 * blocks * heads  # float16 and a byte, for keys and for values
    assert cache_nbytes_per_token(rounded(model, FORMATS[0]), torch.bfloat16) == numbers / 2 + scales


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StateFormat(5), "kv.bits=5 is not possible"),
        (lambda: StateFormat(4, group_size=12), "multiple of 8"),
        (lambda: StateFormat(4, Sharing.channel), "needs group_size"),
        (lambda: StateFormat(4, Sharing.head, 8), "use group_size=0"),
        (lambda: KeyValueFormat(rotate=True), "nothing is rounded"),
        (lambda: KeyValueFormat(window=-1), "kv.window=-1"),
        (lambda: KeyValueFormat.from_json({"keys": {"sharing": "row"}, "values": {}}), "sharing=row"),
        (lambda: StateFormat(4, group_size=32).require_width(16), "heads have 16 channels"),
    ],
)
def test_impossible_formats_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_other_caches_are_refused() -> None:
    model = rounded(tiny_model("llama"), FORMATS[0])
    static = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(ValueError, match="need a DynamicCache"):
        model(TOKENS, **{CACHE: static})
    begun = DynamicCache()
    tiny_model("llama")(TOKENS, **{CACHE: begun})
    with pytest.raises(ValueError, match="empty at first"):
        model(TOKENS, **{CACHE: begun})
    with pytest.raises(ValueError, match="attn_implementation"):
        Columns(FORMATS[1], 0, 0, 3).mask(torch.ones(1, 3), torch.device("cpu"))


def test_windows_that_forget_are_refused() -> None:
    model = tiny_model("llama")

    options = {**model.config.to_dict(), "sliding_window": 8}
    options.pop("model_type"), options.pop("architectures", None)
    sliding = AutoModelForCausalLM.from_config(MistralConfig(**options))
    with pytest.raises(NotApplicable, match="a sliding window"):
        head_shapes(sliding)


def test_positions_beyond_a_learned_table_are_refused() -> None:
    model = prefixed(tiny_model("gpt2"), [3] * 8)
    table = model.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"than the {table} that the model has learned"):
        model(torch.zeros(1, table, dtype=torch.long))


def test_gradients_do_not_pass() -> None:
    model = rounded(tiny_model("llama"), FORMATS[0])
    model.requires_grad_(True)
    with pytest.raises(ValueError, match="gradients do not pass"):
        model(TOKENS)
