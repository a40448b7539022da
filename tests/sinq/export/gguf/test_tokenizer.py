"""Keys of tokenizers; that llama.cpp splits texts by them as transformers does is tested with llama.cpp."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sinq import NotApplicable
from sinq.export.gguf.tokenizer import LLAMA3, split_name, tokenizer_keys
from tests.conftest import tiny_tokenizer
from tests.sinq.export.gguf.subjects import byte_level

BYTES = {"type": "ByteLevel", "use_regex": True}
PLAIN = {"type": "ByteLevel", "use_regex": False}


def sequence(*parts: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}}


@pytest.mark.parametrize(
    ("splitter", "name"),
    [
        (BYTES, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, BYTES), "smollm"),
        (sequence(split(LLAMA3), PLAIN), "llama-bpe"),
        (sequence(split(LLAMA3.replace("{1,3}", "")), PLAIN), "qwen2"),
    ],
)
def test_names_of_splits(splitter: dict[str, Any], name: str) -> None:
    assert split_name(splitter) == name


@pytest.mark.parametrize(
    "splitter",
    [
        None,
        PLAIN,
        {"type": "Whitespace"},
        sequence({"type": "Digits", "individual_digits": False}, BYTES),
        sequence(split("x+"), PLAIN),
        sequence(split(LLAMA3), BYTES),
    ],
)
def test_other_splits_are_refused(splitter: dict[str, Any] | None) -> None:
    with pytest.raises(NotApplicable, match="which has no name here"):
        split_name(splitter)


def test_byte_level() -> None:
    keys = tokenizer_keys(byte_level(bos_token="<s>"), vocabulary=6)
    assert keys == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>", "[PAD4]", "[PAD5]"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 5, 5],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }


def test_a_chat_template_is_written() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_keys(tokenizer, 4)["tokenizer.chat_template"] == "{{ messages }}"


def test_sentencepiece() -> None:
    vocabulary = {"<unk>": 0, "<0x00>": 1, "▁": 2, "a": 3, "▁a": 4}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.ByteFallback()
    keys = tokenizer_keys(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), 5)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.token_type"] == [2, 6, 1, 1, 1]
    assert keys["tokenizer.ggml.scores"] == [0.0, -1.0, -2.0, -3.0, -4.0]
    assert keys["tokenizer.ggml.add_space_prefix"] is True


def test_tokenizers_that_are_not_written() -> None:
    with pytest.raises(NotApplicable, match="type WordLevel is not written"):
        tokenizer_keys(tiny_tokenizer(), 96)
    with pytest.raises(NotApplicable, match=r"has no tokenizer\.json"):
        tokenizer_keys(object(), 96)  # type: ignore[arg-type]
