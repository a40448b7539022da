"""The texts papers evaluate on, each in two lines of facts: which files, and which data set of the hub."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.text import Corpus, FileRows, HubRows, Passage


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

    Documents are joined by a blank line from the first on. That is neither of the two C4 protocols found in papers (random
    documents at saved offsets; the first 1,100 documents joined by a space, which is `c4_new`), so do not set its numbers beside theirs.
    Where a folder holds only a sample of the train split, its first half evaluates and its second half calibrates; the row says so.
    """

    name = "c4"
    evaluation_files: ClassVar[tuple[FileRows, ...]] = (
        FileRows("c4/c4-validation.00000-of-00008.json.gz"),
        FileRows("c4/c4_train_sample.jsonl", 0.0, 0.5),
    )
    evaluation_hub = HubRows("allenai/c4", split="train", data_files="en/c4-validation.00000-of-00008.json.gz")
    calibration_files = (FileRows("c4/c4-train.00000-of-01024.json.gz"), FileRows("c4/c4_train_sample.jsonl", 0.5, 1.0))
    calibration_hub = HubRows("allenai/c4", split="train", data_files="en/c4-train.00000-of-01024.json.gz")


@dataclass(frozen=True)
class C4New(C4):
    """C4 as GPTQ's `--new-eval` reads it: the first 1,100 documents of the validation shard, joined by a space.

    Papers take the first 256 windows of 2048 tokens: `evaluation.perplexity.windows=256`. A sample of the train split does not do for it.
    """

    documents: ClassVar[int] = 1100
    name = "c4_new"
    joiner = " "
    evaluation_files = C4.evaluation_files[:1]

    def evaluation(self) -> Passage:
        rows, source = self._rows(self.evaluation_files, self.evaluation_hub)
        return Passage(self.joiner.join(rows[: self.documents]), f"{source}, first {self.documents} documents")


@dataclass(frozen=True)
class PennTreebank(Corpus):
    """Penn Treebank, as language models know it: sentences joined by a space."""

    name = "ptb"
    joiner = " "
    evaluation_files = (FileRows("ptb/ptb.test.txt", strip=True),)
    evaluation_hub = HubRows("ptb-text-only/ptb_text_only", split="test", revision="refs/convert/parquet", column="sentence")
    calibration_files = (FileRows("ptb/ptb.train.txt", strip=True),)
    calibration_hub = HubRows("ptb-text-only/ptb_text_only", split="train", revision="refs/convert/parquet", column="sentence")


@dataclass(frozen=True)
class Pile(Corpus):
    """The Pile's validation split (what AWQ calibrates on): its first half evaluates, its second half calibrates."""

    name = "pile"
    evaluation_files = (FileRows("pile/val.jsonl", 0.0, 0.5), FileRows("pile/val.jsonl.gz", 0.0, 0.5))
    evaluation_hub = HubRows("mit-han-lab/pile-val-backup", split="validation[:50%]")
    calibration_files = (FileRows("pile/val.jsonl", 0.5, 1.0), FileRows("pile/val.jsonl.gz", 0.5, 1.0))
    calibration_hub = HubRows("mit-han-lab/pile-val-backup", split="validation[50%:]")
