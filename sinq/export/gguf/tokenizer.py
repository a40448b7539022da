"""A tokenizer as keys of GGUF, so that llama.cpp splits a text as transformers does.

Two kinds are written: byte-level BPE ("gpt2"), and sentencepiece's BPE with bytes for unknown characters
("llama"). For the first, llama.cpp knows expressions that split a text before merging by name. The name is
found by what the tokenizer does (its expression), not by a hash of sample ids as in llama.cpp's converter; an
expression that is not known is refused, because a wrong name gives other tokens and no error.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sinq.common.errors import NotApplicable
from sinq.export.gguf.container import Value
from sinq.export.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER = "tokenizer.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"type": "Digits", "individual_digits": True}
SPLITS = {LLAMA3: "llama-bpe", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
"""Expression → its name in llama.cpp."""


def source_keys(source: Source) -> dict[str, Value]:
    """Return the keys of a source's tokenizer, in memory or in its folder; without one, a file chats with ids
    only.

    Raises:
        NotApplicable: see `tokenizer_keys`.
    """
    tokenizer, vocabulary = source.tokenizer, source.model.config.vocab_size
    if tokenizer is None and (file := next((f for f in source.files if f.name == TOKENIZER), None)):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False)
    return {"tokenizer.ggml.model": "none"} if tokenizer is None else tokenizer_keys(tokenizer, vocabulary)


def tokenizer_keys(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> dict[str, Value]:
    """Return the keys of a tokenizer.

    Args:
        vocabulary: rows of the embedding; ids without a token are named "[PADi]".

    Raises:
        NotApplicable: it is not a fast BPE tokenizer, or splits texts in a way that is not known.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NotApplicable("gguf: the tokenizer has no tokenizer.json; only fast tokenizers are written")
    content = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise NotApplicable(f"gguf: a tokenizer of type {model['type']} is not written; BPE is")
    tokens, kinds = _tokens(content, vocabulary)
    keys: dict[str, Value] = {"tokens": tokens, "token_type": kinds}
    keys |= _sentencepiece(content, vocabulary) if model["byte_fallback"] else _byte_level(content)
    keys |= _special(tokenizer)
    named = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    template = getattr(tokenizer, "chat_template", None)
    return named | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})


def _tokens(content: Mapping[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of every id."""
    texts = [f"[PAD{number}]" for number in range(vocabulary)]
    kinds = [UNUSED] * vocabulary
    model, fallback = content["model"], content["model"]["byte_fallback"]
    for text, number in model["vocab"].items():
        is_byte = fallback and len(text) == 6 and text.startswith("<0x")
        texts[number], kinds[number] = text, BYTE if is_byte else NORMAL
    for added in content["added_tokens"]:
        number = added["id"]
        texts[number], kinds[number] = added["content"], CONTROL if added["special"] else USER_DEFINED
    if fallback and (unknown := model.get("unk_token")) is not None:
        kinds[model["vocab"][unknown]] = UNKNOWN
    return texts, kinds


def _sentencepiece(content: Mapping[str, Any], vocabulary: int) -> dict[str, Value]:
    """Return the keys of sentencepiece's BPE: a token's score is minus its id, the order of its merge."""
    prepends = '"Prepend"' in json.dumps(content["normalizer"]) or '"always"' in json.dumps(
        content["pre_tokenizer"]
    )
    scores = [-float(number) for number in range(vocabulary)]
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prepends}


def _byte_level(content: Mapping[str, Any]) -> dict[str, Value]:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return {"model": "gpt2", "pre": split_name(content["pre_tokenizer"]), "merges": merges}


def split_name(splitter: Mapping[str, Any] | None) -> str:
    """Return llama.cpp's name for the way in which a byte-level tokenizer splits a text.

    Raises:
        NotApplicable: it is not one of those known here.
    """
    parts = (splitter or {}).get("pretokenizers", [splitter or {}])
    *before, last = [(part.get("type"), part) for part in parts]
    if last[0] == "ByteLevel":
        if not before and last[1]["use_regex"]:
            return "gpt-2"
        if last[1]["use_regex"] and [part for _, part in before] == [DIGITS]:
            return "smollm"
        if [kind for kind, _ in before] == ["Split"] and not last[1]["use_regex"]:
            expression = before[0][1]["pattern"].get("Regex", "")
            if expression in SPLITS:
                return SPLITS[expression]
    raise NotApplicable(
        f"gguf: the tokenizer splits texts by {json.dumps(splitter)[:200]}, which has no name here; known are"
        f" GPT-2's, SmolLM's, Llama 3's and Qwen2's"
    )


def _special(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Value]:
    """Return ids of special tokens, and whether BOS and EOS are put around a text."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{short}_token_id") for short, name in names.items()}
    plain = tokenizer("a")["input_ids"]
    return {name: number for name, number in ids.items() if number is not None} | {
        "add_bos_token": tokenizer.bos_token_id is not None and plain[0] == tokenizer.bos_token_id,
        "add_eos_token": tokenizer.eos_token_id is not None and plain[-1] == tokenizer.eos_token_id,
    }
