"""Calibration without text: what is drawn, what is refused, what is kept, and that no text is opened."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from baselines.awq import AWQ
from baselines.gptq import GPTQ
from baselines.rtn import RTN
from experiments.data import text as texts
from experiments.data.bos import Bos
from experiments.evaluation.sampling import draw_token, sample
from experiments.models.source import LoadedModel
from experiments.runs import text_free
from experiments.runs.text_free import RandomTokens, SelfGenerated, TextFree, vocabulary
from sinq import SINQ, Grid, Method
from tests.conftest import tiny_model, tiny_tokenizer

GRID = Grid(bits=3, group_size=32)
SOURCES = pytest.mark.parametrize("source", [RandomTokens(), SelfGenerated()], ids=["random", "generated"])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoadedModel:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    return LoadedModel(tiny_model("llama"), tiny_tokenizer(), torch.float32, identity={"name": "tiny"})


@SOURCES
def test_how_tokens_were_made_is_in_the_identity_of_a_row(source: TextFree) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"samples": 9},
        {"seqlen": 255},
        {"seed": 1},
        {"sequential": False},
        {"bos": Bos.each},
    ]
    if isinstance(source, SelfGenerated):
        changes += [{"temperature": 0.5}, {"quantized_bits": 4}, {"batch": 3}]
    found = [str(replace(source, **change).identity()) for change in changes]
    assert len(set(found)) == len(changes)
    assert all(source.name in each for each in found)


def no_text(*_: Any) -> None:
    pytest.fail("a text was opened")


@SOURCES
@pytest.mark.parametrize("method", [GPTQ(SINQ(GRID)), AWQ(RTN(GRID))], ids=lambda method: method.name)
def test_any_calibrated_method_takes_it_and_no_text_is_opened(
    source: TextFree, method: Method, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_speeches", no_text)
    monkeypatch.setattr(texts, "_read_file", no_text)
    calibration = replace(source, samples=3, seqlen=12).load(loaded)
    assert calibration.tokens.shape == (3, 12)
    assert calibration.facts["distinct_tokens"] == 36
    assert calibration.facts["vocabulary"] == len(calibration.tokens.unique())
    report = method.compress(tiny_model("llama"), calibration)
    assert 0 < report.relative_error_mean < 1


@SOURCES
def test_the_seed_decides(source: TextFree, loaded: LoadedModel) -> None:
    first, again, other = (replace(source, seed=seed, seqlen=9).load(loaded).tokens for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@SOURCES
def test_each_window_may_begin_with_bos(source: TextFree, loaded: LoadedModel) -> None:
    loaded.tokenizer.bos_token = "<s>"
    calibration = replace(source, samples=5, seqlen=9, bos=Bos.each).load(loaded)
    assert calibration.tokens.shape == (5, 9)
    assert calibration.tokens[:, 0].tolist() == [1] * 5
    assert 1 not in calibration.tokens[:, 1:]
    assert calibration.facts["bos"] == "each window"
    assert len(calibration.tokens[:, 1:].unique(dim=0)) == 5, "texts after the same token differ"


@SOURCES
def test_a_tokenizer_without_bos_is_refused(source: TextFree, loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match=r"calibration\.bos=each is not possible: .* calibration\.bos=first"):
        replace(source, bos=Bos.each).load(loaded)


@SOURCES
def test_special_tokens_are_never_drawn(source: TextFree, loaded: LoadedModel) -> None:
    special = set(loaded.tokenizer.all_special_ids)
    assert special
    tokens = replace(source, samples=40, seqlen=10).load(loaded).tokens
    assert not special & set(tokens.unique().tolist())


def test_sampling_follows_the_models_probabilities(loaded: LoadedModel) -> None:
    """Second tokens after one first token, against the probabilities of one pass without a cache."""
    allowed = vocabulary(loaded)
    first = torch.full((4000,), int(allowed[3]))
    even = (torch.arange(4000, dtype=torch.float64)[:, None] + 0.5) / 4000
    for temperature in (1.0, 0.2):
        found = sample(loaded.model, first, even, allowed, temperature)[:, 1].contiguous()
        with torch.inference_mode():
            logits = loaded.model(first[:1, None]).logits[0, -1][allowed].double()
        expected = (logits / temperature).softmax(0)
        counted = torch.bincount(torch.searchsorted(allowed, found), minlength=len(allowed)) / len(found)
        assert (counted - expected).abs().max() < 1 / 4000


def test_a_text_does_not_depend_on_those_beside_it(loaded: LoadedModel) -> None:
    together, alone = (
        replace(SelfGenerated(samples=7, seqlen=12), batch=batch).load(loaded) for batch in (7, 2)
    )
    assert torch.equal(together.tokens, alone.tokens)


def test_the_ends_of_the_numbers_draw_tokens_that_can_be_drawn() -> None:
    logits = torch.tensor([[[-torch.inf, 0.0, 0.0, -torch.inf, 5.0]]])
    ends = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    allowed = torch.tensor([0, 1, 2, 3])
    drawn = draw_token(logits.expand(4, 1, 5), ends[:, None], allowed)
    assert drawn.flatten().tolist() == [1, 1, 2, 2]


def test_with_little_temperature_it_is_greedy_decoding(loaded: LoadedModel) -> None:
    """Each token is the most probable one after those before it, in one pass without a cache."""
    allowed = vocabulary(loaded)
    tokens = sample(loaded.model, allowed[:5], torch.rand(5, 7), allowed, temperature=1e-6)
    with torch.inference_mode():
        logits = loaded.model(tokens).logits[:, :-1, allowed]
    assert torch.equal(tokens[:, 1:], allowed[logits.argmax(-1)])


def test_a_model_without_a_cache_reads_its_text_anew(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SelfGenerated(samples=2, seqlen=8)
    with_cache = source.load(loaded).tokens
    monkeypatch.setattr("experiments.evaluation.generation.CACHES", ())
    without = source._sampled(loaded, vocabulary(loaded), 8, lambda items, *_: items)
    assert torch.equal(with_cache, without)


def test_sampled_tokens_are_kept_and_remade_when_damaged(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = SelfGenerated(samples=2, seqlen=8)
    first = source.load(loaded).tokens
    (file,) = (tmp_path / "sampled").glob("*.npy")
    kept = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(text_free, "sample", lambda *_: pytest.fail("sampled again"))
        assert torch.equal(source.load(loaded).tokens, first)
    file.write_bytes(kept[:-5])
    assert torch.equal(source.load(loaded).tokens, first)
    assert file.read_bytes() == kept


def test_sampling_from_the_quantized_model_leaves_the_dense_one(loaded: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    tokens = SelfGenerated(samples=2, seqlen=8, quantized_bits=4).load(loaded).tokens
    assert tokens.shape == (2, 8)
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())


def test_a_model_that_groups_of_64_do_not_divide_can_be_sampled_quantized(loaded: LoadedModel) -> None:
    config = copy.deepcopy(loaded.model.config)
    config.intermediate_size = 80
    odd = LoadedModel(type(loaded.model)(config).eval(), loaded.tokenizer, torch.float32, {"name": "odd"})
    assert SelfGenerated(samples=2, seqlen=8, quantized_bits=4).load(odd).tokens.shape == (2, 8)


def test_windows_are_no_longer_than_the_context(loaded: LoadedModel) -> None:
    tokens = RandomTokens(samples=1, seqlen=10**6).load(loaded).tokens
    assert tokens.shape == (1, loaded.context)


def test_a_model_that_repeats_one_token_is_refused(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        text_free, "sample", lambda model, first, uniform, *_: torch.full_like(uniform, 7).long()
    )
    with pytest.raises(ValueError, match=r"sampled one token, 7, .* calibration=random_tokens"):
        SelfGenerated(samples=2, seqlen=8).load(loaded)


@SOURCES
def test_a_vocabulary_of_one_is_refused(
    source: TextFree, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = list(range(len(loaded.tokenizer)))
    monkeypatch.setattr(type(loaded.tokenizer), "all_special_ids", everything[1:])
    with pytest.raises(ValueError, match=r"vocabulary of .* has 1 that is not special"):
        source.load(loaded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"calibration\.temperature=0"),
        ({"temperature": float("nan")}, r"calibration\.temperature=nan"),
        ({"quantized_bits": 7}, r"calibration\.quantized_bits=7"),
        ({"batch": 0}, r"calibration\.batch=0"),
        ({"seqlen": 0}, r"calibration\.seqlen=0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfGenerated(**options)


@pytest.mark.parametrize("kind", [RandomTokens, SelfGenerated])
@pytest.mark.parametrize("size", [{"samples": 10**6}, {"samples": 10**6, "seqlen": 10**6}])
def test_more_windows_than_the_memory_holds_are_refused_before_any_is_made(
    kind: type[TextFree], size: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tokens and hidden states: 10⁶ windows of 64 tokens of 64 numbers are 17 GB."""
    loaded = LoadedModel(tiny_model("llama"), tiny_tokenizer(), torch.float32)
    free = type(psutil.virtual_memory())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free(*[8 * 10**9] * len(free._fields)))
    monkeypatch.setattr(kind, "tokens", lambda *_: pytest.fail("tokens were made"))
    with pytest.raises(ValueError, match=r"samples=1000000 windows of 64 .* use .*=\d+ or fewer"):
        kind(**size).load(loaded)
