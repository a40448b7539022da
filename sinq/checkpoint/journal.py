"""Journal of finished files: a JSON file beside the results, by which killed work is continued.

    {"format": 3, "sha256": "…",
     "content": {"identity": {…}, "done": {"model-00001-of-00032.safetensors": {"tensors": {…}, …}, …}}}

A file of results counts as done when the journal names it and its length is the journal's; `stream` compares
the checksums of its tensors too. The journal has a hash of its content. It is rewritten after each file,
entirely or not at all. A file that was renamed to its final name just before a kill is made again, and so is
one that was damaged since. Two calls of `stream` must not work in one folder at once: the process that is
called hands out files to its workers, and alone writes the journal.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sinq.common.atomic_files import SCRATCH, replacing
from sinq.common.inside import exists, regular_file
from sinq.common.reading import entry, read_json

FORMAT = 3
JOURNAL = "stream.json"


class JournalError(ValueError):
    """A folder of results that cannot be continued: its journal is damaged, or of other work."""


@dataclass(frozen=True)
class FinishedShard:
    """A finished file of results."""

    nbytes: int
    """Length of the file."""
    tensors: Mapping[str, int]
    """Checksum of each tensor in it, by name."""
    edits: Sequence[dict[str, Any]]
    """Edits that put its compressed weights into the model, as `sinq.json` has them."""
    layers: Sequence[dict[str, Any]]
    """Reports of its layers (`PartReport`)."""


def resume(folder: Path, identity: dict[str, Any]) -> dict[str, FinishedShard]:
    """Return the finished files of a folder by name. The folder is made, or cleared of half-written files.

    Args:
        identity: plain JSON values that determine the results.

    Raises:
        JournalError: the folder holds other files or results of another identity, or its journal is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [path for path in folder.iterdir() if not path.name.endswith(SCRATCH)]
    if not found:
        write(folder, identity, {})
        return {}
    if not (folder / JOURNAL).exists():
        raise JournalError(
            f"{folder} is not empty, and nothing here was begun by stream; choose another folder"
        )
    done = _finished(folder, identity)
    clear(folder)
    return {name: shard for name, shard in done.items() if _length(folder, name) == shard.nbytes}


def clear(folder: Path) -> None:
    """Delete half-written files, of whoever was killed."""
    for scratch in folder.glob(f".*{SCRATCH}"):
        scratch.unlink(missing_ok=True)


def _length(folder: Path, name: str) -> int | None:
    return regular_file(folder, name).stat().st_size if exists(folder, name) else None


def _sha256_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(folder: Path, identity: dict[str, Any], done: dict[str, FinishedShard]) -> None:
    """Replace the journal of a folder."""
    content = {"identity": identity, "done": {name: asdict(shard) for name, shard in done.items()}}
    journal = {"format": FORMAT, "sha256": _sha256_of(content), "content": content}
    with replacing(folder / JOURNAL) as scratch:
        scratch.write_text(json.dumps(journal))


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, FinishedShard]:
    """Return the files that a journal lists, or raise `JournalError` if it is of other work or damaged."""
    path = regular_file(folder, JOURNAL)
    try:
        journal = read_json(path)
    except ValueError as error:
        raise JournalError(f"{error}; delete {folder}, or choose another folder") from error
    try:
        if (number := entry(journal, "format", int)) != FORMAT:
            raise ValueError(f"format is {number}; this version reads {FORMAT}")
        content = entry(journal, "content", dict)
        if entry(journal, "sha256", str) != _sha256_of(content):
            raise ValueError("its content does not have its hash, so it is damaged")
        found, done = entry(content, "identity", dict), entry(content, "done", dict)
        shards = {name: _shard(shard) for name, shard in done.items()}
    except ValueError as error:
        raise JournalError(f"{path}: {error}; delete {folder}, or choose another folder") from error
    for key, wanted in identity.items():
        if found.get(key) != wanted:
            raise JournalError(
                f"{folder} was begun with another {key}: {found.get(key)}, not {wanted}."
                " Delete it, or choose another folder"
            )
    return shards


def _shard(content: Any) -> FinishedShard:
    tensors, edits = entry(content, "tensors", dict), entry(content, "edits", list)
    return FinishedShard(entry(content, "nbytes", int), tensors, edits, entry(content, "layers", list))
