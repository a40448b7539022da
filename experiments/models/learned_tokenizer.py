"""A tokenizer learned on a text: made once for each text, size and kind, and kept in the cache.

Byte pairs have all 256 bytes as their alphabet, so they can write any text, whichever they were learned on,
and know no unknown token. Words are the most frequent ones of the text; any other is one unknown token, and a
perplexity over words counts it as a word like any other, so it is the lower, the smaller the vocabulary is.
Token 0 begins or ends a text where a model asks for one.
"""

import enum
from typing import TYPE_CHECKING

from experiments.common.cache import Entry, key
from experiments.data.text import Document

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.trainers import Trainer
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
UNKNOWN = "<unk>"
"""Any word that is not in the vocabulary; only a tokenizer of words has it."""
WORD = r"\n|\w+|[^\w\s]+"
"""A word: the end of a line, or a run of letters and digits, or of other characters; spaces only divide."""


class Tokens(enum.Enum):
    """Kind of tokens that a tokenizer learns."""

    byte_pairs = "byte_pairs"
    words = "words"

    @property
    def fewest(self) -> int:
        """Return the smallest vocabulary: the special tokens, and the bytes or one word."""
        return {Tokens.byte_pairs: 1 + 256, Tokens.words: 2 + 1}[self]

    @property
    def label(self) -> str:
        """Return the name for people."""
        return self.value.replace("_", " ")


def learned_tokenizer(passage: Document, vocabulary: int, tokens: Tokens) -> "PreTrainedTokenizerFast":
    """Return the tokenizer of `vocabulary` tokens that is learned on a passage.

    Raises:
        ValueError: the passage has too few different pairs or words for so many tokens.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made_of = key(text=passage.fingerprint, vocabulary=vocabulary, tokens=tokens.value)
    entry = Entry("tokenizers", f"{made_of}.json")
    if not entry.intact:
        entry.write(_learned(passage, vocabulary, tokens).to_str().encode())
    backend = Tokenizer.from_str(entry.path.read_text(encoding="utf-8"))
    unknown = {"unk_token": UNKNOWN} if tokens is Tokens.words else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, **unknown)


def _learned(passage: Document, vocabulary: int, tokens: Tokens) -> "Tokenizer":
    backend, trainer = {Tokens.byte_pairs: _byte_pairs, Tokens.words: _words}[tokens](vocabulary)
    backend.train_from_iterator(passage.text.splitlines(keepends=True), trainer)
    if (found := backend.get_vocab_size()) != vocabulary:
        raise ValueError(
            f"model.vocabulary={vocabulary} is not possible: {passage.source} gives {found} tokens;"
            f" choose at most {found}, or a longer model.text"
        )
    return backend


def _byte_pairs(vocabulary: int) -> tuple["Tokenizer", "Trainer"]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return backend, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )


def _words(vocabulary: int) -> tuple["Tokenizer", "Trainer"]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    return backend, trainers.WordLevelTrainer(
        vocab_size=vocabulary, special_tokens=[END, UNKNOWN], show_progress=False
    )
