"""A tokenizer of byte pairs, learned on a text: made once for each text and size, and kept in the cache.

Its alphabet is all 256 bytes, so it can write any text, whichever it was learned on, and knows no unknown
token. Number 0 is the one special token; it begins or ends a text where a model asks for one.
"""

from typing import TYPE_CHECKING

from experiments.common.cache import Entry, key
from experiments.data.text import Document

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
SMALLEST = 257
"""Tokens of a vocabulary without a merge: the special one, and the bytes."""


def byte_pairs(passage: Document, vocabulary: int) -> "PreTrainedTokenizerFast":
    """Return the tokenizer of `vocabulary` tokens that is learned on a passage.

    Raises:
        ValueError: the passage has too few different pairs for so many tokens.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    entry = Entry("tokenizers", f"{key(text=passage.fingerprint, vocabulary=vocabulary)}.json")
    if not entry.intact:
        entry.write(_learned(passage, vocabulary).to_str().encode())
    backend = Tokenizer.from_str(entry.path.read_text(encoding="utf-8"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END)


def _learned(passage: Document, vocabulary: int) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(passage.text.splitlines(keepends=True), trainer)
    if (found := backend.get_vocab_size()) != vocabulary:
        raise ValueError(
            f"model.vocabulary={vocabulary} is not possible: {passage.source} gives {found} tokens;"
            f" choose at most {found}, or a longer model.text"
        )
    return backend
