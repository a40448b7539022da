"""Calibration windows lie where the published procedures put them, and say what was drawn."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import draw as module
from experiments.data.bos import Bos, advice
from experiments.data.corpora import C4, Pile, WikiText2
from experiments.data.draw import REPEATS, Draw
from experiments.data.text import Collection, Document
from experiments.models.source import LoadedModel
from experiments.runs.calibration import CalibrationText
from tests.conftest import tiny_model, tiny_tokenizer
from tests.experiments.tiny import subject

TOKENIZER = tiny_tokenizer()  # a token for each letter


def collection(lengths: list[int]) -> Collection:
    """Documents of these lengths; each is one letter, again and again, and then a mark at its end."""
    letters = [chr(ord("a") + k % 26) for k in range(len(lengths))]
    documents = tuple(letter * (length - 1) + "!" for letter, length in zip(letters, lengths, strict=True))
    return Collection("\n\n".join(documents), "test", documents)


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=26), st.integers(0, 99))
def test_windows_are_pieces_of_documents_long_enough(lengths: list[int], seed: int) -> None:
    passage, draw = collection(lengths), Draw(samples=4, seqlen=12, seed=seed)
    long = [text for text in passage.documents if len(text) >= 12]
    if not long:
        with pytest.raises(ValueError, match=r"0 have 12 tokens or more; use a smaller calibration\.seqlen"):
            draw.of(passage, TOKENIZER, "")
        return
    drawn = draw.of(passage, TOKENIZER, "")
    for window in drawn.tokens.tolist():
        assert any(
            window == ids(text)[start : start + 12] for text in long for start in range(len(text) - 11)
        )
    again = draw.of(passage, TOKENIZER, "")
    assert torch.equal(drawn.tokens, again.tokens)
    assert drawn.facts == again.facts
    assert drawn.facts["documents"] == min(4, len(long))
    assert drawn.facts["distinct_tokens"] <= 4 * 12


def test_every_long_document_and_offset_is_drawn_alike() -> None:
    """GPTQ's own procedure, in plain Python: both are uniform over documents, then over offsets."""
    passage, samples = collection([13, 5, 16, 12]), 2000
    generator, expected = random.Random(0), torch.zeros(4, 5)
    for _ in range(samples):
        while len(ids(passage.documents[k := generator.randrange(4)])) < 12:
            pass
        expected[k, generator.randint(0, len(passage.documents[k]) - 12)] += 1
    found = torch.zeros(4, 5)
    for seed in range(samples):
        for window in Draw(1, 12, seed).of(passage, TOKENIZER, "").tokens.tolist():
            letter = TOKENIZER.decode(window[:1])
            k = ord(letter) - ord("a")
            marked = window[-1] == ids("!")[0]
            start = len(passage.documents[k]) - 12 if marked else 0
            found[k, start] += 1
    assert torch.equal(found.sum(1) > 0, expected.sum(1) > 0)
    assert torch.allclose(found.sum(1), expected.sum(1), rtol=0.1)
    last = torch.tensor([found[k, len(passage.documents[k]) - 12] / found[k].sum() for k in (0, 2)])
    assert torch.allclose(last, torch.tensor([1 / 2, 1 / 5]), atol=0.05)


def test_few_documents_of_a_shard_are_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    passage, calls = collection([40] * 5000), []
    monkeypatch.setattr(module, "tokenize", lambda *_: pytest.fail("the whole text was tokenised"))

    def counted(text: str, **options: bool) -> object:
        calls.append(text)
        return TOKENIZER(text, **options)

    Draw(16, 32, 0).of(passage, counted, "")  # type: ignore[arg-type]
    assert len(calls) == 16


@pytest.mark.parametrize(
    "passage", [collection([40, 8]), Document("a" * 40, "test")], ids=["documents", "text"]
)
def test_a_text_is_read_ten_times_and_no_more(
    passage: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    most = REPEATS if isinstance(passage, Collection) else REPEATS * 40 // 32
    assert len(Draw(most, 32, 0).of(passage, TOKENIZER, "h").tokens) == most
    with pytest.raises(
        ValueError, match=rf"samples={most + 1} windows of 32 .* use calibration\.samples={most} "
    ):
        Draw(most + 1, 32, 0).of(passage, TOKENIZER, "h")


@given(st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_distinct_tokens_are_counted_as_by_hand(samples: int, seed: int) -> None:
    letters = "".join(chr(32 + k) for k in range(90))  # all tokens differ
    drawn = Draw(samples, 10, seed)._of_text(torch.tensor(ids(letters)), torch.Generator().manual_seed(seed))
    assert drawn.facts == {
        "windows": samples,
        "seqlen": 10,
        "distinct_tokens": len(set(drawn.tokens.flatten().tolist())),
        "text_tokens": 90,
    }


def test_the_draw_is_in_the_identity_of_collections_alone(tmp_path: Path) -> None:
    for name, content in (
        ("c4/c4_train_sample.jsonl", '{"text": "a"}\n'),
        ("pile/val.jsonl", '{"text": "a"}\n'),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content * 4)
    (tmp_path / "wikitext2").mkdir()
    for part in ("test", "train"):
        (tmp_path / f"wikitext2/wiki.{part}.raw").write_text("a\n")
    for text in (C4(str(tmp_path)), Pile(str(tmp_path))):
        assert text.identity("calibration")["draw"] == "documents"
        assert "draw" not in text.identity()
    assert "draw" not in WikiText2(str(tmp_path)).identity("calibration")


def with_bos() -> LoadedModel:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<s>"
    return LoadedModel(tiny_model("llama"), tokenizer, torch.float32, identity={"name": "tiny"})


def test_each_window_begins_with_bos_and_no_token_is_lost() -> None:
    context = replace(subject(), loaded=with_bos())
    text = context.tokens
    chosen = context.windows("x", 33, None, Bos.each)
    assert (chosen[:, 0] == 1).all()
    assert torch.equal(chosen[:, 1:].flatten(), text[: chosen[:, 1:].numel()])
    started = replace(context, tokens=torch.cat([torch.tensor([1]), text]))  # the tokenizer had put it there
    assert torch.equal(started.windows("x", 33, None, Bos.each), chosen)
    assert torch.equal(context.windows("x", 33, None), text[: len(text) // 33 * 33].reshape(-1, 33))


def test_calibration_windows_begin_with_bos_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wikitext2").mkdir()
    for part in ("test", "train"):
        (tmp_path / f"wikitext2/wiki.{part}.raw").write_text("words of a text\n" * 20)
    source = CalibrationText(WikiText2(str(tmp_path)), samples=3, seqlen=16, bos=Bos.each)
    calibration = source.load(with_bos())
    assert calibration.tokens.shape == (3, 16)
    assert (calibration.tokens[:, 0] == 1).all()
    assert not (calibration.tokens[:, 1:] == 1).any()
    assert calibration.facts["bos"] == "each window"


@pytest.mark.parametrize(
    ("architecture", "needs"), [("gemma3_text", True), ("gemma", True), ("llama", False)]
)
def test_models_known_to_need_bos_get_a_note(architecture: str, needs: bool) -> None:
    assert (advice(architecture, Bos.first, "evaluation.perplexity.bos") is not None) == needs
    assert advice(architecture, Bos.each, "evaluation.perplexity.bos") is None
