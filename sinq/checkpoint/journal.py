"""What of a long piece of work is done, in a small JSON file beside its results, so that it can go on after it was killed.

    {"format": 2, "identity": {…}, "done": {"model-00001-of-00032.safetensors": {"nbytes": …, "tensors": […], …}, …}}

A file of results counts as done when the journal names it and it is as long as the journal says. The journal is rewritten after each file,
whole or not at all; a file that took its name just before a kill is simply made again. Two processes must not work in one folder at once.
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
    """One finished file."""

    nbytes: int
    """Its length."""
    tensors: Sequence[str]
    edits: Sequence[dict[str, Any]]
    """Those that put its compressed weights into the model, as `sinq.json` has them."""
    layers: Sequence[dict[str, Any]]
    """Their reports."""


def resume(folder: Path, identity: dict[str, Any]) -> dict[str, FinishedShard]:
    """What is done in a folder, by file name. The folder is made, or cleared of half-written files.

    Args:
        identity: plain JSON values; all that decides what the results are.

    Raises:
        ValueError: the folder holds something else, or results of another identity.
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
    done = {name: FinishedShard(**it) for name, it in journal["done"].items()}
    return {
        name: it
        for name, it in done.items()
        if (folder / name).is_file() and (folder / name).stat().st_size == it.nbytes
    }


def write(folder: Path, identity: dict[str, Any], done: dict[str, FinishedShard]) -> None:
    """Replace the journal of a folder."""
    content = {
        "format": FORMAT,
        "identity": identity,
        "done": {name: asdict(it) for name, it in done.items()},
    }
    with replacing(folder / JOURNAL) as scratch:
        scratch.write_text(json.dumps(content))


def _refuse_other(folder: Path, journal: dict[str, Any], identity: dict[str, Any]) -> None:
    if journal["format"] != FORMAT:
        raise ValueError(f"{folder / JOURNAL} has format {journal['format']}; this version reads {FORMAT}")
    for key, wanted in identity.items():
        found = journal["identity"].get(key)
        if found != wanted:
            raise ValueError(
                f"{folder} was begun with another {key}: {found}, not {wanted}. Delete it, or choose another folder"
            )
