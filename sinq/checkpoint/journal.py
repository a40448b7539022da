"""Journal of finished files: a JSON file beside the results, by which killed work is continued.

    {"format": 3, "identity": {…},
     "done": {"model-00001-of-00032.safetensors": {"nbytes": …, "tensors": {…}, …}, …}}

A file of results counts as done when the journal names it and its length is the journal's; `stream` compares
the checksums of its tensors too. The journal is
rewritten after each file, entirely or not at all. A file that was renamed to its final name just before a
kill is made again. Two processes must not work in one folder at once.
"""

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
        ValueError: the folder holds other files, or results of another identity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [path for path in folder.iterdir() if not path.name.endswith(SCRATCH)]
    if not found:
        write(folder, identity, {})
        return {}
    if not (folder / JOURNAL).exists():
        raise ValueError(
            f"{folder} is not empty, and nothing here was begun by stream; choose another folder"
        )
    done = _finished(folder, identity)
    for scratch in folder.glob(f".*{SCRATCH}"):
        scratch.unlink()
    return {name: shard for name, shard in done.items() if _length(folder, name) == shard.nbytes}


def _length(folder: Path, name: str) -> int | None:
    return regular_file(folder, name).stat().st_size if exists(folder, name) else None


def write(folder: Path, identity: dict[str, Any], done: dict[str, FinishedShard]) -> None:
    """Replace the journal of a folder."""
    content = {
        "format": FORMAT,
        "identity": identity,
        "done": {name: asdict(shard) for name, shard in done.items()},
    }
    with replacing(folder / JOURNAL) as scratch:
        scratch.write_text(json.dumps(content))


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, FinishedShard]:
    """Return the files that a journal lists, or raise `ValueError` if it is of other work or none."""
    path = regular_file(folder, JOURNAL)
    journal = read_json(path)
    try:
        if (number := entry(journal, "format", int)) != FORMAT:
            raise ValueError(f"format is {number}; this version reads {FORMAT}")
        found, done = entry(journal, "identity", dict), entry(journal, "done", dict)
        shards = {name: _shard(content) for name, content in done.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete the folder, or choose another") from error
    for key, wanted in identity.items():
        if found.get(key) != wanted:
            raise ValueError(
                f"{folder} was begun with another {key}: {found.get(key)}, not {wanted}."
                " Delete it, or choose another folder"
            )
    return shards


def _shard(content: Any) -> FinishedShard:
    tensors, edits = entry(content, "tensors", dict), entry(content, "edits", list)
    return FinishedShard(entry(content, "nbytes", int), tensors, edits, entry(content, "layers", list))
