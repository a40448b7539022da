"""Rounded keys and values around methods: composition, static scales, the order of errors, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

import sinq
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.prefixquant import Prefix
from baselines.rtn import RTN
from sinq import (
    SINQ,
    ActivationFormat,
    Activations,
    Calibration,
    Grid,
    KeyValueFormat,
    KeyValues,
    Method,
    NotApplicable,
    StateFormat,
)
from sinq.formats.activations import Per
from sinq.formats.key_values import Sharing
from sinq.model.key_value_edits import key_value_stores
from sinq.model.key_values import KeyValueStore
from tests.conftest import tiny_model

ARCHITECTURES = ("llama", "qwen3-tied", "moe", "gpt2", "opt")
GRID = Grid(bits=4, group_size=32)
TOKENS = torch.arange(2 * 40).reshape(2, 40) % 90
TEXT = Calibration(TOKENS)
FOUR = KeyValueFormat(StateFormat(4), StateFormat(4))
PER_HEAD = StateFormat(8, Sharing.head)
STATIC = KeyValueFormat(PER_HEAD, PER_HEAD)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_more_bits_are_nearer_to_dense_keys_and_values(architecture: str) -> None:
    target, distances = logits(tiny_model(architecture)), []
    for bits in (2, 3, 4, 8):
        model = tiny_model(architecture)
        states = StateFormat(bits)
        report = KeyValues(Dense(), KeyValueFormat(states, states)).compress(model)
        assert report.parts == ()
        distances.append((logits(model) - target).norm() / target.norm())
    assert distances == sorted(distances, reverse=True)
    assert 0 < distances[-1] < 0.02


@pytest.mark.parametrize(
    "inner",
    [SINQ(GRID), GPTQ(RTN(GRID)), Activations(SINQ(GRID), ActivationFormat(8, Per.tensor, static=True))],
    ids=lambda inner: inner.label,
)
@pytest.mark.parametrize("kv", [FOUR, STATIC], ids=lambda kv: kv.label)
def test_weights_are_those_of_the_inner_method(inner: Method, kv: KeyValueFormat, tmp_path: Path) -> None:
    alone, model = tiny_model("llama"), tiny_model("llama")
    inner.compress(alone, TEXT)
    report = KeyValues(inner, kv).compress(model, TEXT)
    expected = alone.state_dict()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.items())
    assert report.method == f"{inner.label} {kv.label}"
    sinq.save(model, tmp_path)
    assert torch.equal(logits(sinq.load(tmp_path)), logits(model))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_static_scales_are_the_extremes_of_heads(architecture: str, symmetric: bool) -> None:
    """Against the keys and values of an ordinary cache of the same windows."""
    states = StateFormat(8, Sharing.head, symmetric=symmetric)
    dense, model = tiny_model(architecture), tiny_model(architecture)
    KeyValues(Dense(), KeyValueFormat(states, states)).compress(model, TEXT)
    with torch.no_grad():
        output = dense(TOKENS, use_cache=True)
    kept = output.get("cache", output.get("past_key_values")).layers
    for (_, store), layer in zip(key_value_stores(model).items(), kept, strict=True):
        for name, tensor in (("key", layer.keys), ("value", layer.values)):
            by_head = tensor.transpose(0, 1).flatten(1)
            if symmetric:
                expected = by_head.abs().amax(1) / 127
            else:
                expected = (by_head.amax(1).clamp_min(0) - by_head.amin(1).clamp_max(0)) / 255
            torch.testing.assert_close(store.get_buffer(f"{name}_scale"), expected, rtol=2e-3, atol=1e-6)


def test_static_scales_are_checked_on_loading() -> None:
    model = tiny_model("llama")
    KeyValues(Dense(), STATIC).compress(model, TEXT)
    store: Any = next(iter(key_value_stores(model).values()))
    tensors = dict(store.named_buffers())
    with pytest.raises(ValueError, match="scales must be above 0"):
        store.take(tensors | {"key_scale": -tensors["key_scale"]})
    with pytest.raises(ValueError, match="key_scale"):
        store.take(tensors | {"key_scale": tensors["key_scale"][:1]})


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        (lambda: KeyValues(Dense(), KeyValueFormat()), None, "rounds nothing"),
        (lambda: KeyValues(Dense(), STATIC), None, "needs calibration text"),
        (lambda: KeyValues(Dense(), KeyValueFormat(StateFormat(2, group_size=32))), None, "groups of 32"),
        (lambda: KeyValues(KeyValues(Dense(), FOUR), FOUR), None, "around another KeyValues"),
    ],
)
def test_impossible_combinations_are_refused(method: Any, text: Any, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        method().compress(tiny_model("llama"), text)


def test_numbers_that_are_not_finite_name_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    see = KeyValueStore.see
    monkeypatch.setattr(KeyValueStore, "see", lambda self, keys, values: see(self, keys * torch.nan, values))
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn: keys are not finite on"):
        KeyValues(Dense(), STATIC).compress(model, TEXT)


def test_a_searched_scale_has_the_least_error_of_its_head() -> None:
    """Against every share, on the keys and values of an ordinary cache."""
    whole, searched = StateFormat(3, Sharing.head), StateFormat(3, Sharing.head, search=True)
    dense, before, model = tiny_model("llama"), tiny_model("llama"), tiny_model("llama")
    KeyValues(Dense(), KeyValueFormat(whole, whole)).compress(before, TEXT)
    KeyValues(Dense(), KeyValueFormat(searched, searched)).compress(model, TEXT)
    with torch.no_grad():
        kept = dense(TOKENS, use_cache=True).get("cache").layers
    stores = zip(key_value_stores(before).values(), key_value_stores(model).values(), kept, strict=True)
    for old, new, layer in stores:
        for name, x in (("key", layer.keys), ("value", layer.values)):
            scale, zero = (old.get_buffer(f"{name}_{what}").view(-1, 1, 1) for what in ("scale", "zero"))
            errors = [head_errors(x, scale * (1 - step / 20), zero) for step in range(10)]
            found = head_errors(x, new.get_buffer(f"{name}_scale").view(-1, 1, 1), zero)
            assert (found <= torch.stack(errors).amin(0) * (1 + 1e-5)).all()
            assert (found < errors[0]).any()


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("rotate", [False, True])
def test_keys_searched_by_attention_have_the_least_error_of_its_probabilities(
    prefix: bool, rotate: bool
) -> None:
    """Of the first block, against every share in float64, with each head's queries and a dense prefix."""
    whole, searched = StateFormat(3, Sharing.head), StateFormat(3, Sharing.head, search=True)
    inner = Prefix(Dense(), tokens=(5, 1)) if prefix else Dense()
    dense, before, model = tiny_model("llama"), tiny_model("llama"), tiny_model("llama")
    KeyValues(inner, KeyValueFormat(whole, whole, rotate=rotate)).compress(before, TEXT)
    KeyValues(inner, KeyValueFormat(searched, whole, rotate=rotate, search_attention=True)).compress(
        model, TEXT
    )
    if prefix:
        inner.compress(dense, TEXT)
    seen: list[tuple[Tensor, ...]] = []
    plain = nn.functional.scaled_dot_product_attention

    class See(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is plain:
                seen.append(tuple(each.double() for each in args[:2]))
            return func(*args, **(kwargs or {}))

    with See(), torch.no_grad():
        dense(TOKENS)
    query, key = seen[0]
    old, new = (next(iter(key_value_stores(each).values())) for each in (before, model))
    kept, heads = (2 if prefix else 0), old.heads
    key = key[:, :: key.shape[1] // heads]
    matrix = scipy.linalg.hadamard(key.shape[-1]) / key.shape[-1] ** 0.5 if rotate else np.eye(key.shape[-1])
    turn = torch.tensor(matrix, dtype=torch.float64)
    scale, zero = (old.get_buffer(f"key_{what}").double().view(-1, 1, 1) for what in ("scale", "zero"))

    def probabilities(keys: Tensor) -> Tensor:
        shared = keys.repeat_interleave(query.shape[1] // heads, 1)
        scores = query @ shared.mT / query.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + kept)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1)

    def errors(scale: Tensor) -> Tensor:
        text = key[:, :, kept:] @ turn
        rounded = (((text / scale + zero).round().clamp(-4, 3) - zero) * scale) @ turn.T
        off = probabilities(torch.cat([key[:, :, :kept], rounded], 2)) - probabilities(key)
        return off.square().sum((0, 2, 3)).reshape(heads, -1).sum(1)

    every = torch.stack([errors(scale * (1 - step / 20)) for step in range(10)])
    found = errors(new.get_buffer("key_scale").double().view(-1, 1, 1))
    assert (found <= every.amin(0) * (1 + 1e-4)).all()
    assert (found < every.amax(0)).all()


def test_a_search_by_attention_is_refused_where_nothing_is_searched() -> None:
    with pytest.raises(NotApplicable, match=r"kv\.keys\.search=false"):
        KeyValueFormat(StateFormat(3, Sharing.head), search_attention=True)


def head_errors(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    rounded = ((x / scale + zero).round().clamp(-4, 3) - zero) * scale
    return (rounded - x).square().sum((0, 2, 3))


class TestSpikes:
    states = StateFormat(4, steps=2, share=0.25)
    format = KeyValueFormat(states, states)

    @pytest.mark.parametrize("architecture", ["llama", "qwen3-tied", "gpt2"])
    def test_channels_are_those_of_queries_and_probabilities(self, architecture: str) -> None:
        """Of the first block, step by step: (k QᵀQ) ∘ k, and (PᵀP V) ∘ V, over all tokens and heads."""
        dense, model = tiny_model(architecture), tiny_model(architecture)
        KeyValues(Dense(), self.format).compress(model, TEXT)
        store = next(iter(key_value_stores(model).values()))
        seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        plain = nn.functional.scaled_dot_product_attention

        class See(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is plain:
                    query, key, value = (each.double() for each in args[:3])
                    shared = query.shape[1] // key.shape[1]
                    key, value = (each.repeat_interleave(shared, 1) for each in (key, value))
                    scores = query @ key.mT * kwargs.get("scale", query.shape[-1] ** -0.5)
                    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                    seen.append((query, key, value, scores.masked_fill(future, -torch.inf).softmax(-1)))
                return func(*args, **(kwargs or {}))

        with See():
            logits(dense)
        query, key, value, probabilities = seen[0]
        keys = ((key @ query.mT @ query) * key).sum((0, 2))
        values = ((probabilities.mT @ (probabilities @ value)) * value).sum((0, 2))
        for name, by_query in (("key", keys), ("value", values)):
            score = by_query.unflatten(0, (store.heads, -1)).sum(1).flatten()
            chosen = store.salient(name)
            assert chosen is not None
            assert len(chosen) == store.heads * store.width // 4
            others = torch.ones(len(score), dtype=torch.bool).index_fill_(0, chosen, False)
            assert score[chosen].min() >= score[others].max() * (1 - 1e-6)

    def test_they_are_nearer_than_plain_codes_and_are_kept(self, tmp_path: Path) -> None:
        target = logits(tiny_model("llama"))
        plain, model = tiny_model("llama"), tiny_model("llama")
        KeyValues(Dense(), FOUR).compress(plain)
        KeyValues(Dense(), self.format).compress(model, TEXT)
        assert (logits(model) - target).norm() < (logits(plain) - target).norm()
        sinq.save(model, tmp_path)
        loaded = sinq.load(tmp_path)
        assert torch.equal(logits(loaded), logits(model))
        assert loaded.generate(TOKENS[:1, :9], max_new_tokens=3, do_sample=False).shape == (1, 12)

    def test_token_by_token_is_one_pass(self) -> None:
        model = tiny_model("llama").double()
        KeyValues(Dense(), self.format).compress(model, TEXT)
        cache: dict[str, Any] = {}
        whole, parts = logits(model), []
        with torch.no_grad():
            for token in range(10):
                output = model(TOKENS[:, token : token + 1], use_cache=True, **cache)
                name = "cache" if "cache" in output else "past_key_values"
                cache, parts = {name: output[name]}, [*parts, output.logits]
        torch.testing.assert_close(torch.cat(parts, 1), whole[:, :10], rtol=1e-4, atol=1e-5)

    def test_they_need_text_and_attention_that_shows(self) -> None:
        with pytest.raises(NotApplicable, match="needs calibration text"):
            KeyValues(Dense(), self.format).compress(tiny_model("llama"))
        model = tiny_model("llama")
        model.set_attn_implementation("eager")
        with pytest.raises(ValueError, match=r"layers\.0\.self_attn: attention was not seen.*sdpa"):
            KeyValues(Dense(), self.format).compress(model, TEXT)
