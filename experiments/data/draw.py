"""Calibration windows: random pieces of a text, drawn as the published methods draw them.

A text that was written as a whole (WikiText-2, Penn Treebank) is joined and tokenised once, and windows begin
anywhere in it. Of a crawled collection (C4, the Pile) windows lie within single documents, as in GPTQ's code:
documents come in random order, one shorter than a window is skipped, and the window begins anywhere in the
others. So 128 windows of a shard of 350,000 documents tokenise some thousands of these, not all.

Windows may overlap. `Drawn.facts` has what was drawn, for the row: a short text has far fewer distinct tokens
than windows × length.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.data.text import Collection, Document, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPEATS = 10
"""Most times that a text may be read on average. Beyond it windows are copies of each other."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """Calibration windows, int64 (windows, seqlen), and the facts about them."""

    tokens: Tensor
    facts: dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """The number and the length of windows, and the seed."""

    samples: int
    seqlen: int
    seed: int

    def of(self, passage: Document, tokenizer: "PreTrainedTokenizerBase", tokenizer_hash: str) -> Drawn:
        """Return windows of a passage.

        Raises:
            ValueError: the passage has no window, or is far too short for so many.
        """
        generator = torch.Generator().manual_seed(self.seed)
        if isinstance(passage, Collection):
            return self._of_documents(passage, tokenizer, generator)
        return self._of_text(tokenize(passage, tokenizer, tokenizer_hash), generator)

    def _of_text(self, tokens: Tensor, generator: torch.Generator) -> Drawn:
        if len(tokens) < self.seqlen:
            raise ValueError(
                f"the calibration text has {len(tokens)} tokens, fewer than calibration.seqlen={self.seqlen};"
                " use a longer text or a smaller calibration.seqlen"
            )
        if self.samples * self.seqlen > REPEATS * len(tokens):
            raise ValueError(self._too_few(f"the calibration text has {len(tokens)} tokens", len(tokens)))
        starts = torch.randint(len(tokens) - self.seqlen + 1, (self.samples,), generator=generator).tolist()
        read = torch.zeros(len(tokens), dtype=torch.bool)
        for start in starts:
            read[start : start + self.seqlen] = True
        windows = torch.stack([tokens[start : start + self.seqlen] for start in starts])
        return self._drawn(windows, int(read.sum()), {"text_tokens": len(tokens)})

    def _of_documents(
        self, passage: Collection, tokenizer: "PreTrainedTokenizerBase", generator: torch.Generator
    ) -> Drawn:
        windows: list[Tensor] = []
        read: dict[int, Tensor] = {}
        for number, tokens in self._long_documents(passage, tokenizer, generator):
            start = int(torch.randint(len(tokens) - self.seqlen + 1, (1,), generator=generator))
            windows.append(tokens[start : start + self.seqlen])
            mask = read.setdefault(number, torch.zeros(len(tokens), dtype=torch.bool))
            mask[start : start + self.seqlen] = True
            if len(windows) == self.samples:
                break
        else:
            held = f"of {len(passage.documents)} calibration documents, {len(read)} have {self.seqlen} tokens"
            raise ValueError(self._too_few(f"{held} or more", len(read) * self.seqlen))
        distinct = sum(int(mask.sum()) for mask in read.values())
        return self._drawn(torch.stack(windows), distinct, {"documents": len(read)})

    def _long_documents(
        self, passage: Collection, tokenizer: "PreTrainedTokenizerBase", generator: torch.Generator
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield number and tokens of each document that has a window; all again, up to `REPEATS` times."""
        long: dict[int, Tensor] = {}
        for number in torch.randperm(len(passage.documents), generator=generator).tolist():
            ids = tokenizer(passage.documents[number], verbose=False)["input_ids"]
            if len(ids) >= self.seqlen:
                long[number] = torch.tensor(ids)
                yield number, long[number]
        for _ in range(REPEATS - 1):
            yield from long.items()

    def _too_few(self, found: str, tokens: int) -> str:
        most = REPEATS * tokens // self.seqlen
        advice = f"calibration.samples={most} or fewer" if most else "a smaller calibration.seqlen"
        return (
            f"calibration.samples={self.samples} windows of {self.seqlen} tokens are too many: {found};"
            f" use {advice}, or a longer text"
        )

    def _drawn(self, windows: Tensor, distinct: int, more: dict[str, Any]) -> Drawn:
        count, seqlen = windows.shape
        if 2 * distinct < count * seqlen:
            log.info(
                "calibration: %d windows of %d tokens overlap; %d distinct tokens", count, seqlen, distinct
            )
        facts = {"windows": count, "seqlen": seqlen, "distinct_tokens": distinct}
        return Drawn(windows, facts | more)
