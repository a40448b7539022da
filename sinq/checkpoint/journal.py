"""Journal of finished files: a JSON file beside the results, by which killed work is continued.

    {"format": 3, "sha256": "…",
     "content": {"identity": {…}, "done": {"model-00001-of-00032.safetensors": {"sha256": "…", …}, …}}}

A file of results counts as done when the journal names it and its content has the journal's hash; the journal
has a hash of its content as well. It is rewritten after each file, entirely or not at all. A file that was
renamed to its final name just before a kill is made again, and so is one that was damaged since. Two
processes must not work in one folder at once.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sinq.common.atomic_files import SCRATCH, replacing

FORMAT = 3
JOURNAL = "stream.json"


class JournalError(ValueError):
    """A folder of results that cannot be continued: its journal is damaged, or of other work."""


@dataclass(frozen=True)
class FinishedShard:
    """A finished file of results."""

    nbytes: int
    """Length of the file."""
    sha256: str
    """Hash of the file's content."""
    tensors: Sequence[str]
    """Names of its tensors."""
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
    journal = _read(folder)
    _refuse_other(folder, journal, identity)
    for scratch in folder.glob(f".*{SCRATCH}"):
        scratch.unlink()
    done = {name: FinishedShard(**entry) for name, entry in journal["done"].items()}
    return {name: shard for name, shard in done.items() if _holds(folder / name, shard)}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(path: Path, shard: FinishedShard) -> bool:
    """Return whether a file is the one that was written."""
    same_length = path.is_file() and path.stat().st_size == shard.nbytes
    return same_length and file_sha256(path) == shard.sha256


def _read(folder: Path) -> dict[str, Any]:
    """Return the content of a journal."""
    path = folder / JOURNAL
    advice = f"delete {folder}, or choose another folder"
    try:
        journal = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise JournalError(f"{path} is cut off or no JSON: {error}; {advice}") from error
    found = journal.get("format") if isinstance(journal, dict) else None
    if found != FORMAT:
        raise JournalError(f"{path} has format {found}; this version reads {FORMAT}; {advice}")
    if journal.get("sha256") != _sha256_of(journal.get("content")):
        raise JournalError(f"{path} is damaged: its content does not have its hash; {advice}")
    content: dict[str, Any] = journal["content"]
    return content


def _sha256_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(folder: Path, identity: dict[str, Any], done: dict[str, FinishedShard]) -> None:
    """Replace the journal of a folder."""
    content = {"identity": identity, "done": {name: asdict(shard) for name, shard in done.items()}}
    journal = {"format": FORMAT, "sha256": _sha256_of(content), "content": content}
    with replacing(folder / JOURNAL) as scratch:
        scratch.write_text(json.dumps(journal))


def _refuse_other(folder: Path, journal: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise `JournalError` if a journal has another identity."""
    for key, wanted in identity.items():
        found = journal["identity"].get(key)
        if found != wanted:
            raise JournalError(
                f"{folder} was begun with another {key}: {found}, not {wanted}."
                " Delete it, or choose another folder"
            )
