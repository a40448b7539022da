"""The tokenizer learned here: it writes any text back, is the same every time, and says what it lacks."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from experiments.data.text import Document, tokenize
from experiments.models.learned_tokenizer import END, UNKNOWN, Tokens, learned_tokenizer
from experiments.models.source import hash_of_tokenizer

SMALLEST = Tokens.byte_pairs.fewest
PASSAGE = Document("the cat sat on the mat.\nthe hat is on the cat.\n" * 3, "some lines")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))


def byte_pairs(passage: Document, vocabulary: int) -> PreTrainedTokenizerFast:
    return learned_tokenizer(passage, vocabulary, Tokens.byte_pairs)


def words(passage: Document, vocabulary: int) -> PreTrainedTokenizerFast:
    return learned_tokenizer(passage, vocabulary, Tokens.words)


def test_the_most_frequent_pair_is_the_first_merge() -> None:
    """`at` is in cat, sat, mat, hat and cat again, and in no line is a pair as frequent but `the`'s."""
    tokenizer = byte_pairs(Document("at at at at at it", "pairs"), SMALLEST + 1)
    assert tokenizer.convert_ids_to_tokens(SMALLEST) == "at"
    assert tokenizer("at")["input_ids"] == [SMALLEST]


def test_frequent_words_are_one_token() -> None:
    ids = byte_pairs(PASSAGE, SMALLEST + 16)(" the")["input_ids"]
    assert len(ids) == 1 < len(byte_pairs(PASSAGE, SMALLEST)(" the")["input_ids"])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(lambda text: END not in text))
def test_it_writes_any_text_back(text: str) -> None:
    tokenizer = byte_pairs(PASSAGE, SMALLEST + 16)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert 0 not in ids
    assert max(ids, default=0) < len(tokenizer) == SMALLEST + 16


def test_words_are_the_most_frequent_and_all_others_are_one() -> None:
    """Counted by hand: `the` 4, `.`, line end and cat 2 of a line pair; the rest of the line is unknown."""
    tokenizer = words(PASSAGE, 6)
    known = set(tokenizer.get_vocab())
    assert known == {END, UNKNOWN, "the", ".", "\n", "cat"}
    assert tokenizer.tokenize("the dog, the cat.\n") == ["the", UNKNOWN, UNKNOWN, "the", "cat", ".", "\n"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["the", "cat", "dog", "\n", ".", "@-@"])))
def test_words_are_those_of_a_plain_loop(text: list[str]) -> None:
    tokenizer = words(PASSAGE, 6)
    known = tokenizer.get_vocab()
    expected = [word if word in known else UNKNOWN for word in text]
    assert tokenizer.tokenize(" ".join(text)) == expected


@pytest.mark.parametrize("kind", list(Tokens))
def test_it_is_the_same_at_every_learning(
    kind: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hash_of_tokenizer(learned_tokenizer(PASSAGE, kind.fewest + 6, kind))
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "other"))
    second = learned_tokenizer(PASSAGE, kind.fewest + 6, kind)
    assert hash_of_tokenizer(second) == first
    assert tokenize(PASSAGE, second, first).tolist() == second(PASSAGE.text)["input_ids"]


def test_a_text_with_too_few_pairs_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"model.vocabulary=4096 is not possible: some lines gives \d+ tokens; choose at most",
    ):
        byte_pairs(PASSAGE, 4096)
    with pytest.raises(
        ValueError, match=r"model.vocabulary=4096 is not possible: some lines gives 11 tokens"
    ):
        words(PASSAGE, 4096)
