"""Journal of finished files: a JSON file beside the results, by which killed work is continued.

    {"format": 2, "identity": {…},
     "done": {"model-00001-of-00032.safetensors": {"nbytes": …, "tensors": […], …}, …}}

A file of results counts as done when the journal names it and its length is the journal's. The journal is
rewritten after each file, entirely or not at all. A file that was renamed to its final name just before a
kill is made again. Two processes must not work in one folder at once.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sinq.common.atomic_files import SCRATCH, replacing

FORMAT = 2
JOURNAL = "stream.json"


@dataclass(frozen=True)
class FinishedShard:
    """A finished file of results."""

    nbytes: int
    """Length of the file."""
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
    journal = json.loads((folder / JOURNAL).read_text())
    _refuse_other(folder, journal, identity)
    for scratch in folder.glob(f".*{SCRATCH}"):
        scratch.unlink()
    done = {name: FinishedShard(**entry) for name, entry in journal["done"].items()}
    return {
        name: shard
        for name, shard in done.items()
        if (folder / name).is_file() and (folder / name).stat().st_size == shard.nbytes
    }


def write(folder: Path, identity: dict[str, Any], done: dict[str, FinishedShard]) -> None:
    """Replace the journal of a folder."""
    content = {
        "format": FORMAT,
        "identity": identity,
        "done": {name: asdict(shard) for name, shard in done.items()},
    }
    with replacing(folder / JOURNAL) as scratch:
        scratch.write_text(json.dumps(content))


def _refuse_other(folder: Path, journal: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise `ValueError` if a journal has another format or identity."""
    if journal["format"] != FORMAT:
        raise ValueError(f"{folder / JOURNAL} has format {journal['format']}; this version reads {FORMAT}")
    for key, wanted in identity.items():
        found = journal["identity"].get(key)
        if found != wanted:
            raise ValueError(
                f"{folder} was begun with another {key}: {found}, not {wanted}."
                " Delete it, or choose another folder"
            )
