"""A text of one's own: `text=file text.path=notes.txt`, `calibration=file calibration.text.path=…`.

A plain text is read as it is. Of JSON lines (`.jsonl`, `.json`; also `.gz`) the field `text` of each line is
a row, of Parquet each value of the column `text`; rows are joined by a blank line.

The whole file is both the evaluation and the calibration part. So a run that evaluates and calibrates on one
file is refused (`experiments/runs/run.py`).
"""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from experiments.data.text import Document, Text

JOINER = "\n\n"
COLUMN = "text"


@dataclass(frozen=True)
class TextFile(Text):
    """The content of a file: plain text, JSON lines or Parquet.

    Raises:
        ValueError: no path is given.
    """

    name: ClassVar[str] = "file"

    path: str = ""
    """The file; its suffix decides how it is read."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(
                "text.path is missing; give a file: plain text, .jsonl with a field text in each line,"
                f" or .parquet with a column {COLUMN} (calibration.text.path, where it calibrates)"
            )

    def evaluation(self) -> Document:
        """Return the whole file.

        Raises:
            ValueError: there is no such file, or it cannot be read as its suffix says; the message names it.
        """
        file = Path(self.path).expanduser()
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise ValueError(f"text.path={self.path} {what}; give a file of text")
        stat = file.stat()
        return _document(file, stat.st_mtime_ns, stat.st_size)

    def calibration(self) -> Document:
        return self.evaluation()


@lru_cache(maxsize=4)
def _document(file: Path, changed: int, size: int) -> Document:
    """Return the document of a file, read again when the file has changed."""
    names = [suffix for suffix in file.suffixes if suffix != ".gz"]
    read = READERS.get(names[-1] if names else "", _plain)
    try:
        text = read(file)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"text.path={file} cannot be read: {error}; it must be text in UTF-8") from error
    if not text.strip():
        raise ValueError(f"text.path={file} has no text in it")
    return Document(text, f"file {file.name}")


def _opened(file: Path) -> Iterator[str]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        yield from lines


def _plain(file: Path) -> str:
    return "".join(_opened(file))


def _json_lines(file: Path) -> str:
    lines = ((number, line) for number, line in enumerate(_opened(file), 1) if line.strip())
    return JOINER.join(_json_row(file, number, line) for number, line in lines)


def _json_row(file: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"text.path={file}: line {number} is no JSON ({error}); each line must be an object"
        ) from error
    text = row.get(COLUMN) if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = f"the fields {', '.join(row) or 'none'}" if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"text.path={file}: line {number} has no {COLUMN} that is a string; it has {found}")
    return text


def _parquet(file: Path) -> str:
    from pyarrow import ArrowException, parquet

    try:
        names = parquet.read_schema(file).names
        if COLUMN not in names:
            raise ValueError(f"text.path={file} has no column {COLUMN}; it has {', '.join(names) or 'none'}")
        rows = parquet.read_table(file, columns=[COLUMN])[COLUMN].to_pylist()
    except ArrowException as error:
        raise ValueError(
            f"text.path={file} cannot be read as Parquet: {str(error).splitlines()[0]}"
        ) from error
    for number, row in enumerate(rows):
        if not isinstance(row, str):
            raise ValueError(f"text.path={file}: row {number} of {COLUMN} is {row!r}; it must be a string")
    return JOINER.join(rows)


READERS: dict[str, Callable[[Path], str]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}
"""Suffix → reader; any other file is plain text."""
