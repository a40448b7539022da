"""The texts that papers evaluate on: the files and the hub's data set of each."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, ClassVar

import torch

from experiments.common.paths import data_dir
from experiments.data.text import Corpus, Document, FileRows, HubRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WikiText2(Corpus):
    """WikiText-2, raw: the test split evaluates, the train split calibrates."""

    name = "wikitext2"
    evaluation_files = (FileRows("wikitext2/wiki.test.raw"),)
    evaluation_hub = HubRows("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    calibration_files = (FileRows("wikitext2/wiki.train.raw"), FileRows("wikitext2/wiki.train.first1MB.raw"))
    calibration_hub = HubRows("Salesforce/wikitext", "wikitext-2-raw-v1", "train")


@dataclass(frozen=True)
class C4(Corpus):
    """C4, English: the first validation shard evaluates, the first train shard calibrates.

    Documents are joined by a blank line from the first on. That is neither of the two C4 protocols found in
    papers (`c4_saved`, `c4_new`), so do not set its numbers beside theirs. Where a folder holds only a sample
    of the train split, its first half evaluates and its second half calibrates; the row says so.
    """

    name = "c4"
    by_document = True
    evaluation_files: ClassVar[tuple[FileRows, ...]] = (
        FileRows("c4/c4-validation.00000-of-00008.json.gz"),
        FileRows("c4/c4_train_sample.jsonl", 0.0, 0.5),
    )
    evaluation_hub = HubRows(
        "allenai/c4", split="train", data_files="en/c4-validation.00000-of-00008.json.gz"
    )
    calibration_files = (
        FileRows("c4/c4-train.00000-of-01024.json.gz"),
        FileRows("c4/c4_train_sample.jsonl", 0.5, 1.0),
    )
    calibration_hub = HubRows("allenai/c4", split="train", data_files="en/c4-train.00000-of-01024.json.gz")


@dataclass(frozen=True)
class C4New(C4):
    """C4 by GPTQ's `--new-eval`: the first 1,100 documents of the validation shard, joined by a space.

    Papers take the first 256 windows of 2048 tokens: `evaluation.perplexity.windows=256`. A sample of the
    train split cannot stand in for the validation shard.
    """

    documents: ClassVar[int] = 1100
    name = "c4_new"
    joiner = " "
    evaluation_files = C4.evaluation_files[:1]

    def evaluation(self) -> Document:
        rows, source = self._rows(self.evaluation_files, self.evaluation_hub)
        return Document(
            self.joiner.join(rows[: self.documents]), f"{source}, first {self.documents} documents"
        )


PLACES = ("c4_seed_tmp.pth", "c4_seed_index.pth")
"""Files of the documents' numbers and of the excerpts' first tokens: whole numbers, by `torch.save`."""


@dataclass(frozen=True)
class Excerpts(Document):
    """Excerpts of documents, one after another. Each document is tokenised by itself."""

    documents: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    """Index of the first token taken from each document."""
    length: int = 2048
    """Number of tokens taken; fewer where the document ends before."""

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.documents, self.starts, self.length)).encode()).hexdigest()[:16]

    def ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the token ids of all excerpts, concatenated."""
        return [
            token
            for text, start in zip(self.documents, self.starts, strict=True)
            for token in tokenizer(text, verbose=False)["input_ids"][start : start + self.length]
        ]


@dataclass(frozen=True)
class C4Saved(C4):
    """C4 as the SINQ paper reads it: 2,048 tokens from each of 256 documents, at saved positions.

    The documents are from the first validation shard. The protocol is `eval_my` of
    Efficient-ML/Qwen3-Quantization.

    The two files of positions (`PLACES`) are not part of this project: they are in that folder, and in
    `tests/eval_my` of huawei-csl/SINQ. They were drawn with another tokenizer, so a document may end before
    its 2,048 tokens do. Then its remaining tokens are taken, as in `eval_my`. All later windows are shifted,
    and there may be fewer than 256: `windows` and `tokens` of a row give the numbers.
    """

    indices: str | None = None
    """A folder with the two files; by default the folder `c4` in `text.path` or SINQ_DATA."""

    name = "c4_saved"
    evaluation_files = C4.evaluation_files[:1]

    def evaluation(self) -> Document:
        """Return the excerpts.

        Raises:
            ValueError: a file of positions is missing or does not fit the documents.
        """
        numbers, starts = self._positions()
        rows, source = self._rows(self.evaluation_files, self.evaluation_hub)
        if len(numbers) != len(starts) or not all(0 <= number < len(rows) for number in numbers):
            raise ValueError(
                f"text={self.name}: {PLACES[0]} has {len(numbers)} numbers up to {max(numbers, default=0)},"
                f" {PLACES[1]} {len(starts)}; both must have as many, and documents be numbered from 0 to"
                f" {len(rows) - 1}"
            )
        first = ", ".join(map(str, numbers[:3]))
        excerpts = f"{len(numbers)} excerpts of {Excerpts.length} tokens"
        where = f"{source}, {excerpts} at saved places of documents {first}, …"
        documents = tuple(rows[number] for number in numbers)
        return Excerpts("\n\n".join(documents), where, documents, starts)

    def _positions(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Read the documents' numbers, and the index of the first token in each."""
        root = Path(self.path).expanduser() if self.path else data_dir()
        folder = Path(self.indices).expanduser() if self.indices else root / "c4" if root else None
        if folder is None or not all((folder / name).is_file() for name in PLACES):
            raise ValueError(
                f"text={self.name} needs {' and '.join(PLACES)}, which {folder or 'no folder'} has;"
                " they are in the folder eval_my of github.com/Efficient-ML/Qwen3-Quantization:"
                " name yours with text.indices, or put them into the folder c4 of SINQ_DATA"
            )
        numbers, starts = (_whole_numbers(folder / name) for name in PLACES)
        return numbers, starts


def _whole_numbers(file: Path) -> tuple[int, ...]:
    """Read a list of whole numbers from 0 on."""
    try:
        values = torch.load(file, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} cannot be read as torch.save writes it: {reason}") from error
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{file} holds {str(values)[:40]}; it must be a list of whole numbers from 0 on")
    return tuple(values)


@dataclass(frozen=True)
class PennTreebank(Corpus):
    """Penn Treebank, as usual for language models: sentences joined by a space."""

    name = "ptb"
    joiner = " "
    evaluation_files = (FileRows("ptb/ptb.test.txt", strip=True),)
    evaluation_hub = HubRows(
        "ptb-text-only/ptb_text_only", split="test", revision="refs/convert/parquet", column="sentence"
    )
    calibration_files = (FileRows("ptb/ptb.train.txt", strip=True),)
    calibration_hub = HubRows(
        "ptb-text-only/ptb_text_only", split="train", revision="refs/convert/parquet", column="sentence"
    )


@dataclass(frozen=True)
class Pile(Corpus):
    """The Pile's validation split, on which AWQ calibrates: the first half evaluates, the rest calibrates."""

    name = "pile"
    by_document = True
    evaluation_files = (FileRows("pile/val.jsonl", 0.0, 0.5), FileRows("pile/val.jsonl.gz", 0.0, 0.5))
    evaluation_hub = HubRows("mit-han-lab/pile-val-backup", split="validation[:50%]")
    calibration_files = (FileRows("pile/val.jsonl", 0.5, 1.0), FileRows("pile/val.jsonl.gz", 0.5, 1.0))
    calibration_hub = HubRows("mit-han-lab/pile-val-backup", split="validation[50%:]")
