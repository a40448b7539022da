"""Forms of attention in real decoders: exactness, causality, masks, files, and generating."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig

from sinq import Kernel, NotApplicable, load, save, using
from sinq.model.attention import attentions
from sinq.model.attention_forms.edits import (
    EstimateAttention,
    HighestKeys,
    LinearizeAttention,
    NarrowAttention,
    ReplaceAttention,
)
from sinq.model.attention_forms.form import attention_forms, query_shapes, require_causal
from sinq.model.attention_forms.sparse import EstimatedAttention
from sinq.model.attention_probabilities import Probabilities
from sinq.model.edits import edit, edit_as_json, edit_from_json, unexplained
from tests.sinq.sliceable import random_model

KINDS = ("llama", "qwen3", "opt")
BLOOM = BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=2)
FORMS = ("estimated", "linear", "local", "highest")
IDS = torch.randint(3, 90, (2, 40), generator=torch.Generator().manual_seed(3))


def change(form: str, name: str, keys: int = 6, heads: int = 4) -> ReplaceAttention:
    if form == "linear":
        return LinearizeAttention(name, 16, 4.0)
    if form == "local":
        return NarrowAttention(name, keys)
    if form == "highest":
        return HighestKeys(name, keys)
    return EstimateAttention(name, heads, 16, keys, 8, 64, 4.0)


def with_form(kind: str, form: str, keys: int = 6, gates: float = 1.0) -> Any:
    """A model of random weights with attention of another form, initialized."""
    model = random_model(kind)
    generator = torch.Generator().manual_seed(1)
    for name in attentions(model):
        edit(model, change(form, name, keys))
        made = attention_forms(model)[name]
        if isinstance(made, EstimatedAttention):
            made.estimator.initialize(generator, gates)
        elif form == "linear":
            made.omega.copy_(torch.randn(made.omega.shape, generator=generator))
    return model.requires_grad_(False)


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, **options: Any) -> Tensor:
    found: Tensor = model(ids, **options).logits
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_token_is_read_ahead(kind: str, form: str) -> None:
    model = with_form(kind, form)
    before = logits(model)
    for position in (0, 11, 38):
        other = IDS.clone()
        other[:, position:] = (other[:, position:] + 7) % 90
        found = logits(model, other)
        torch.testing.assert_close(found[:, :position], before[:, :position], rtol=0, atol=2e-5)
        assert not torch.allclose(found[:, position], before[:, position], atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_read_alike_alone_in_a_batch_and_in_a_longer_one(kind: str, form: str) -> None:
    model = with_form(kind, form)
    whole = logits(model)
    torch.testing.assert_close(logits(model, IDS[:1, :23]), whole[:1, :23], rtol=0, atol=2e-5)
    padded = logits(model, IDS, attention_mask=(torch.arange(40) < 23).long().expand(2, -1))
    torch.testing.assert_close(padded[:, :23], whole[:, :23], rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_sparse_computation_is_the_dense_definition(kind: str, form: str) -> None:
    model = with_form(kind, form)
    with torch.enable_grad():
        dense = model(IDS).logits.detach()
    for kernel in (Kernel.reference, Kernel.auto):
        with using(kernel):
            torch.testing.assert_close(logits(model), dense, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", ["estimated", "local", "highest"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_no_more_tokens_than_keys_is_attended_exactly(kind: str, form: str) -> None:
    model = with_form(kind, form, keys=40, gates=60.0)
    for made in attention_forms(model).values():
        if isinstance(made, EstimatedAttention):
            made.estimator.gates.weight.zero_()  # open, whatever is encoded
    torch.testing.assert_close(logits(model), logits(random_model(kind)), rtol=0, atol=2e-5)


def test_with_more_tokens_than_keys_it_is_not() -> None:
    assert not torch.allclose(logits(with_form("llama", "highest")), logits(random_model("llama")), atol=1e-2)


def test_watched_probabilities_are_those_of_the_sparse_attention() -> None:
    model = with_form("llama", "estimated", keys=3)
    with torch.no_grad(), Probabilities(lambda p: p) as attention:
        seen = model(IDS[:1]).logits
    torch.testing.assert_close(seen, logits(model, IDS[:1]), rtol=0, atol=2e-5)
    assert len(attention.seen) == 2
    rows = attention.seen[0][0, :, -1]  # of the last query; one without keys shows all alike
    assert bool(((rows > 0).sum(-1) < 40).any())


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_model_loads_and_generates(form: str, tmp_path: Path) -> None:
    model = with_form("llama", form)
    assert unexplained(model) == []
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    found = loaded.generate(IDS[:1, :9], max_new_tokens=5, do_sample=False)
    ids = IDS[:1, :9]
    for _ in range(5):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids)


@pytest.mark.parametrize("form", FORMS)
def test_an_edit_is_plain_json(form: str) -> None:
    made = change(form, "model.layers.0.self_attn")
    assert edit_from_json(edit_as_json(made)) == made


def test_other_models_keep_their_attention() -> None:
    model = random_model("llama")
    before, clone = logits(model), copy.deepcopy(model)
    for name in attentions(clone):
        edit(clone, change("local", name, keys=1))
    assert torch.equal(logits(model), before)
    assert model.config.use_cache
    assert model(IDS).past_key_values is not None
    assert not torch.equal(logits(clone), before)


def test_a_cache_is_refused() -> None:
    model = with_form("llama", "local")
    filled = random_model("llama")(IDS[:1, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="use use_cache=False"):
        model(IDS[:1, 5:6], past_key_values=filled)
    with pytest.raises(ValueError, match="use use_cache=False"):
        model.generate(IDS[:1, :5], max_new_tokens=2, use_cache=True)
    assert model(IDS, use_cache=True).past_key_values is None


def test_padding_on_the_left_and_windows_are_refused() -> None:
    model = with_form("llama", "local")
    with pytest.raises(ValueError, match="padding_side='right'"):
        logits(model, IDS, attention_mask=(torch.arange(40) > 5).long().expand(2, -1))
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    require_causal(seen[None, None])
    require_causal(torch.zeros(9, 9).masked_fill(~seen, -torch.inf)[None, None])
    with pytest.raises(ValueError, match="window of attention"):
        require_causal((seen & seen.new_ones(9, 9).triu(-3))[None, None])


def test_a_text_that_is_longer_than_the_positions_is_refused() -> None:
    model = with_form("llama", "estimated")
    with pytest.raises(ValueError, match="a text of 65 tokens is longer than the 64 positions"):
        logits(model, torch.zeros(1, 65, dtype=torch.long))


def test_shapes_are_found_and_attention_that_cannot_change_is_refused() -> None:
    assert set(query_shapes(random_model("llama")).values()) == {(4, 16)}
    with pytest.raises(NotApplicable, match="attention"):
        query_shapes(
            AutoModelForCausalLM.from_config(BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=2))
        )


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: EstimateAttention("a", 4, 16, 6, 10, 64, 4.0), "blocks=10 is no multiple of 4"),
        (lambda: EstimateAttention("a", 4, 16, 0, 8, 64, 4.0), "keys=0"),
        (lambda: NarrowAttention("a", 0), "keys=0"),
        (lambda: HighestKeys("a", 0), "keys=0"),
        (lambda: LinearizeAttention("a", 16, 0.0), "fraction=0"),
    ],
)
def test_impossible_options_are_refused(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()


def test_a_module_that_is_no_attention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no attention module model\.norm"):
        edit(random_model("llama"), NarrowAttention("model.norm", 3))
