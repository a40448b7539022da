"""`sinq.json`: the edits of a model, and the checksums by which a damaged or mixed folder is known.

    {"format": 3,
     "edits": [{"name": "replace_linear", …}, …],
     "checksums": {"model.embed_tokens.weight": 3632233996, …},
     "digest": "…"}

There is a CRC-32 for the bytes of every tensor, and a SHA-256 for the rest of the file. They find damage, and
tensors of another save; they are no signature. Formats 1 and 2 have none, and are read as they are.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinq.checkpoint.former_layouts import edits_from_format_1
from sinq.checkpoint.weight_files import LISTED
from sinq.common.inside import exists, regular_file
from sinq.common.reading import entry, read_json, shown, typed
from sinq.model.attention_forms import edits as _edits  # noqa: F401 - so that files may name them
from sinq.model.edits import Edit, edit_as_json, edit_from_json

FORMAT = 3
LAYOUT = "sinq.json"
ENTRIES = {
    1: {"format", "places"},
    2: {"format", "edits"},
    FORMAT: {"format", "edits", "checksums", "digest"},
}
"""Names in the file, by format."""


@dataclass(frozen=True)
class Layout:
    """The content of a `sinq.json`, as plain JSON values."""

    path: Path
    content: Mapping[str, Any]

    @property
    def checksums(self) -> Mapping[str, int] | None:
        """Checksum of each tensor, or None in a format that has none."""
        return self.content.get("checksums")

    def edits(self, tensors: Mapping[str, Tensor]) -> list[Edit]:
        """Return the edits.

        Args:
            tensors: of the folder.

        Raises:
            ValueError: an edit or a weight is not known, or is not described as it must be.
        """
        if self.content["format"] == 1:
            changes = edits_from_format_1(entry(self.content, "places", list), tensors)
        else:
            changes = entry(self.content, "edits", list)
        return [edit_from_json(change) for change in changes]

    def verify(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `ValueError` if tensors are not those that were saved with this file."""
        if self.checksums is None:
            return
        names = sorted({*tensors} ^ {*self.checksums})
        names = names or [name for name in tensors if checksum(tensors[name]) != self.checksums[name]]
        if names:
            raise ValueError(
                f"{self.path.parent} has tensors that {LAYOUT} was not written with:"
                f" {', '.join(names[:LISTED])}; the files are damaged, or of two saves"
            )


def read_layout(folder: Path) -> Layout:
    """Return the layout of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no layout, of another format, or damaged.
    """
    if not exists(folder, LAYOUT):
        raise FileNotFoundError(f"{folder} has no {LAYOUT}, so it is not a model saved by sinq.save")
    path = regular_file(folder, LAYOUT)
    content = read_json(path)
    try:
        _require_form(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Layout(path, content)


def _require_form(content: Any) -> None:
    number = entry(content, "format", int)
    if number not in ENTRIES:
        raise ValueError(f"format is {shown(number)}; this version reads {', '.join(map(str, ENTRIES))}")
    if wrong := sorted(ENTRIES[number] ^ content.keys()):
        raise ValueError(f"format {number} has {', '.join(sorted(ENTRIES[number]))}; see {', '.join(wrong)}")
    if number != FORMAT:
        return
    for name, value in entry(content, "checksums", dict).items():
        typed(value, int, f"the checksum of {name}")
    if entry(content, "digest", str) != _digest(content):
        raise ValueError("the digest is not that of the content; the file is damaged or was changed by hand")


def write_layout(changes: Sequence[Edit], checksums: Mapping[str, int], path: Path) -> None:
    """Write the edits that `load` applies to the architecture, and the checksum of every tensor."""
    edits = [edit_as_json(change) for change in changes]
    content: dict[str, Any] = {"format": FORMAT, "edits": edits, "checksums": dict(checksums)}
    path.write_text(json.dumps(content | {"digest": _digest(content)}, indent=1))


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a content without the digest in it."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes, in the order of its entries."""
    stored = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(stored.numpy().data) if stored.numel() else 0
