"""Pseudo-perplexity against its definition, one masked copy at a time; encoders and decoders kept apart."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experiments.data.framed import frame_of, with_frame, without_frame
from experiments.evaluation import (
    EvaluationContext,
    Latency,
    LayerError,
    Memory,
    Perplexity,
    PseudoPerplexity,
    Size,
    StableRank,
    ZeroShot,
)
from experiments.evaluation.in_memory import perplexity
from experiments.models.source import LoadedModel, Pretrained, load, sparing_clone
from experiments.runs.text_free import SelfGenerated
from sinq import SINQ, CompressionReport, Grid
from sinq.common.progress import silent
from sinq.model.language_model import Predicts
from tests.conftest import tiny_tokenizer, tiny_tokens
from tests.experiments.tiny import subject
from tests.sinq.sliceable import ENCODERS, random_model

MASK, FIRST, LAST = 0, 1, 2
FRAME = (FIRST, LAST)


def tokenizer(framed: bool = True) -> Any:
    made = tiny_tokenizer()
    made.mask_token = "<pad>"
    if framed:
        made.cls_token, made.sep_token = "<s>", "</s>"
    return made


def encoder(name: str, framed: bool = True) -> EvaluationContext:
    """A random encoder whose predictions are far from uniform, and a text in its frame."""
    model = random_model(name)
    for parameter in model.get_output_embeddings().parameters():
        parameter.mul_(4)
    loaded = LoadedModel(model, tokenizer(framed), torch.float32)
    text = tiny_tokens(1, 90)[0].clamp(min=3)
    tokens = torch.cat([torch.tensor([FIRST]), text, torch.tensor([LAST])]) if framed else text
    return EvaluationContext(model, loaded, tokens, CompressionReport(), torch.device("cpu"), silent)


@torch.no_grad()
def by_definition(model: Any, window: Tensor, places: range) -> list[float]:
    """−ln p of each token of a window, (seqlen,), with the mask in its place, in float64."""
    model, found = model.double(), []
    for place in places:
        copy = window.clone()
        copy[place] = MASK
        scores = model(copy[None]).logits[0, place].softmax(-1)
        found.append(-math.log(float(scores[window[place]])))
    model.float()
    return found


@pytest.mark.parametrize("batch", [1, 5, 64])
@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("name", ENCODERS)
def test_it_is_its_definition(name: str, framed: bool, batch: int) -> None:
    context = encoder(name, framed)
    evaluation = PseudoPerplexity(seqlen=22, windows=3, batch=batch)
    evaluation.require_fitting(context)
    evaluation.check(context)
    found = evaluation.measure(context)
    inner = 20 if framed else 22
    text = context.tokens[1:-1] if framed else context.tokens
    nll = []
    for start in range(0, 3 * inner, inner):
        window = text[start : start + inner]
        if framed:
            window = torch.cat([torch.tensor([FIRST]), window, torch.tensor([LAST])])
        nll.append(by_definition(context.model, window, range(1, 21) if framed else range(22)))
    means = [sum(each) / inner for each in nll]
    assert found.samples["window_nll"] == pytest.approx(means, rel=2e-5)
    assert found.metrics["value"] == pytest.approx(math.exp(sum(means) / 3), rel=1e-4)
    assert found.metrics["tokens"] == 3 * inner
    assert (found.metrics["windows"], found.metrics["seqlen"]) == (3, 22)
    assert found.metrics["framed"] is framed


def test_a_share_masks_some_tokens_the_same_ones_for_every_model_and_another_seed_others() -> None:
    context = encoder("bert")
    every = PseudoPerplexity(seqlen=22, windows=2)
    whole = every.measure(context)
    some = replace(every, share=0.3)
    drawn = some.measure(context)
    assert drawn.metrics["tokens"] == 2 * 6
    places = [each.tolist() for each in some._places(2, 22, FRAME)]
    assert places == [each.tolist() for each in some._places(2, 22, FRAME)]
    assert places != [each.tolist() for each in replace(some, seed=1)._places(2, 22, FRAME)]
    for window, chosen in zip(range(2), places, strict=True):
        ids = every._windows(context)[window]
        nll = by_definition(context.model, ids, range(22))
        mean = sum(nll[place] for place in chosen) / 6
        assert drawn.samples["window_nll"][window] == pytest.approx(mean, rel=2e-5)
    assert drawn.metrics["value"] != whole.metrics["value"]


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 64), st.floats(1e-3, 1.0), st.integers(0, 99), st.booleans())
def test_places_are_different_inside_the_frame_and_as_many_as_asked_for(
    seqlen: int, share: float, seed: int, framed: bool
) -> None:
    evaluation = PseudoPerplexity(share=share, seed=seed)
    inner = seqlen - 2 * framed
    for places in evaluation._places(3, seqlen, FRAME if framed else None):
        assert len(places) == len(places.unique()) == max(1, round(share * inner))
        assert int(places.min()) >= framed
        assert int(places.max()) < seqlen - framed


def test_a_model_without_knowledge_has_the_size_of_its_vocabulary() -> None:
    context = encoder("distilbert")
    for parameter in context.model.get_output_embeddings().parameters():
        parameter.zero_()
    found = PseudoPerplexity(seqlen=22, windows=2).measure(context).metrics
    assert found["value"] == pytest.approx(96, rel=1e-5)


def test_a_compressed_encoder_is_measured_beside_the_dense_one() -> None:
    dense = encoder("bert")
    model = random_model("bert")
    model.load_state_dict(dense.model.state_dict())
    report = SINQ(Grid(bits=2, group_size=16)).compress(model)
    evaluation = PseudoPerplexity(seqlen=22, windows=2)
    found, before = (
        evaluation.measure(replace(dense, model=each, report=report)) for each in (model, dense.model)
    )
    assert found.metrics["value"] != before.metrics["value"]
    assert evaluation.against_dense(found, before) == {"dense": before.metrics["value"]}
    size = Size()
    size.require_fitting(dense)
    assert size.measure(replace(dense, model=model, report=report)).metrics["bits_per_weight"] < 8


@pytest.mark.parametrize("name", ENCODERS)
def test_what_does_not_ask_for_a_kind_measures_encoders_too(name: str) -> None:
    dense = encoder(name)
    model: Any = sparing_clone(dense.model)
    report = SINQ(Grid(bits=4, group_size=16)).compress(model)
    context = replace(dense, model=model, report=report)
    found = {}
    for evaluation in (LayerError(seqlen=32), Memory(prompt_tokens=32), Size(), StableRank()):
        evaluation.require_fitting(context)
        evaluation.check(context)
        found[evaluation.name] = evaluation.measure(context).metrics
    assert found["layer_error"]["layers"] >= 12
    assert 0 < found["layer_error"]["mean"] < 0.5
    assert "kv_bytes_per_token" not in found["size"]


def test_frames_are_taken_from_a_text_and_put_around_windows() -> None:
    assert frame_of(tokenizer()) == FRAME
    assert frame_of(tokenizer(framed=False)) is None
    assert without_frame(torch.tensor([1, 5, 6, 2]), FRAME).tolist() == [5, 6]
    assert without_frame(torch.tensor([5, 6]), FRAME).tolist() == [5, 6]
    assert without_frame(torch.tensor([1, 2]), FRAME).tolist() == []
    assert without_frame(torch.tensor([1, 2]), None).tolist() == [1, 2]
    assert with_frame(torch.tensor([[5, 6], [7, 8]]), FRAME).tolist() == [[1, 5, 6, 2], [1, 7, 8, 2]]


@pytest.mark.parametrize("evaluation", [Perplexity(), Latency(), ZeroShot()])
def test_what_needs_a_decoder_is_refused_for_encoders(evaluation: Any) -> None:
    message = (
        f"evaluation.{evaluation.name} needs a model that predicts the next token, and BertForMaskedLM"
        " predicts masked tokens; use evaluation=encoder"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluation.require_fitting(encoder("bert"))


def test_it_is_refused_for_decoders_and_without_a_mask() -> None:
    message = (
        "evaluation.pseudo_perplexity needs a model that predicts masked tokens, and LlamaForCausalLM"
        " predicts the next token; use evaluation=default"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        PseudoPerplexity().require_fitting(subject())
    context = encoder("bert")
    loaded = LoadedModel(context.model, tiny_tokenizer(), torch.float32)
    with pytest.raises(ValueError, match="the model's tokenizer has no mask token"):
        PseudoPerplexity().check(replace(context, loaded=loaded))


def test_perplexity_in_memory_and_written_calibration_are_refused_too() -> None:
    context = encoder("bert")
    with pytest.raises(ValueError, match="needs a model that predicts the next token"):
        perplexity(context.model, tokenizer(), "a text " * 40, windows=1, seqlen=32)
    with pytest.raises(ValueError, match="calibration=self_generated needs a model that writes"):
        SelfGenerated(samples=2, seqlen=8).load(context.loaded)


@pytest.mark.parametrize(
    "options", [{"share": 0.0}, {"share": 1.5}, {"seqlen": 3}, {"windows": 0}, {"batch": 0}, {"seed": -1}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"evaluation\.pseudo_perplexity\.{next(iter(options))}=.* is not"):
        PseudoPerplexity(**options)


def test_an_encoder_is_loaded_with_its_head_for_masked_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    model = random_model("distilbert")
    model.save_pretrained(tmp_path / "distilbert")
    tokenizer().save_pretrained(tmp_path / "distilbert")
    loaded = load(Pretrained(path=str(tmp_path / "distilbert")), torch.device("cpu"))
    assert loaded.predicts is Predicts.masked_tokens
    ids = tiny_tokens(1, 16)
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.tokenizer.mask_token_id == MASK
