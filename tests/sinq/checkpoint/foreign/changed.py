"""Changes to checkpoints, and what loading and running a changed one comes to, with every reader.

The readers are those of other projects' formats, of our folders, and of dense checkpoints (`stream`). Where
nothing in the files is a checksum, another answer is no fault: a changed scale is a scale. Faults are
crashes, errors that are no refusals, refusals in many lines or without the folder, and memory beyond the size
of the files: the process may take `SPARE_BYTES` more than it has.
"""

import json
import random
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sinq
from baselines.rtn import RTN
from sinq import Grid
from sinq.checkpoint.foreign.official_sinq import SIDECAR
from sinq.checkpoint.foreign.reader import load_foreign
from sinq.checkpoint.weight_files import INDEX, TENSORS
from tests.sinq.checkpoint.tampering import ODD, REFUSALS, _bytes, _places, _tensor

SPARE_BYTES = 2 << 30
BYTES = ("flip", "flip_header", "truncate")
TENSOR = ("cut", "repeat", "retype", "drop", "copy", "rename", "swap", "fill", "reshape")
DENSE = (*BYTES, *TENSOR)
STATED = ("stated", "stated_gone", "sidecar", "sidecar_gone")
FILES = ("config", "index", "link")
KINDS = (*DENSE, *STATED, *FILES)
NAMES = ("../model.safetensors", "/etc/passwd", "", "\0", ".", "none.safetensors", "config.json", TENSORS)


@dataclass(frozen=True)
class Change:
    """A change to a folder; the seed chooses what is changed."""

    kind: str
    seed: int


def apply(change: Change, folder: Path) -> None:
    """Change a folder in place."""
    choice = random.Random(change.seed)
    if change.kind in BYTES:
        _bytes(change.kind, choice, folder)
    elif change.kind in TENSOR:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
        _tensor(change.kind, choice, tensors)
        save_file({name: held.contiguous() for name, held in tensors.items()}, folder / TENSORS)
    elif change.kind == "index":
        names = {name: choice.choice(NAMES) for name in load_file(folder / TENSORS)}
        (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    elif change.kind == "link":
        (folder / TENSORS).rename(folder.parent / f"{folder.name}-elsewhere")
        (folder / TENSORS).symlink_to(folder.parent / f"{folder.name}-elsewhere")
    else:
        _json(change.kind, choice, folder)


def _json(kind: str, choice: random.Random, folder: Path) -> None:
    of_sidecar = kind.startswith("sidecar") and (folder / SIDECAR).exists()
    path = folder / (SIDECAR if of_sidecar else "config.json")
    content = json.loads(path.read_text())
    whole = content if of_sidecar or kind == "config" else {"x": content["quantization_config"]}
    parent, key = choice.choice(_places(whole))
    if kind.endswith("_gone") and isinstance(parent, dict):
        del parent[key]
    else:
        parent[key] = choice.choice(ODD)
    if whole is not content:
        content["quantization_config"] = whole.get("x")
    path.write_text(json.dumps(content))


def by_stream(folder: Path) -> Any:
    """Read a dense checkpoint as `stream` does, into a folder of ours, and load that."""
    target = folder.with_name(f"{folder.name}-streamed")
    shutil.rmtree(target, ignore_errors=True)
    sinq.stream(folder, target, RTN(Grid(group_size=32)))
    return sinq.load(target)


READERS: dict[str, Callable[[Path], Any]] = {
    "foreign": lambda folder: load_foreign(folder).model,
    "ours": sinq.load,
    "dense": by_stream,
}


def logits(folder: Path, reader: str) -> list[Tensor]:
    """What a model answers to one token, which kernels read codes for, and to forty."""
    model = READERS[reader](folder)
    with torch.no_grad():
        return [model(torch.arange(count)[None] % 90 + 2).logits for count in (1, 40)]


def outcome(change: Change, folder: Path, reader: str, expected: list[Tensor]) -> str:
    """Return "right", "another answer", "loaded" or "refused"; "unclear" and the message for a fault."""
    try:
        if change.kind == "config":  # a model of other options may not run, which is no matter of its files
            READERS[reader](folder)
            return "loaded"
        found = logits(folder, reader)
    except REFUSALS as error:
        lines = str(error).splitlines()
        named = str(folder) in lines[0] or "layer model." in lines[0]  # a weight that no method can take
        is_clear = len(lines) == 1 and named
        return "refused" if is_clear else f"unclear: {type(error).__name__} {error}"
    return "right" if all(map(torch.equal, found, expected)) else "another answer"


def try_changes(clean: Path, reader: str, changes: list[Change], results: Path) -> None:
    """Write the outcome of each change to a copy of a folder, a line each."""
    torch.set_num_threads(1)
    expected = logits(clean, reader)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES,) * 2)
    for number, change in enumerate(changes):
        folder = results.parent / f"{results.name}-{number}"
        shutil.copytree(clean, folder)
        apply(change, folder)
        with results.open("a") as out:
            out.write(json.dumps(outcome(change, folder, reader, expected)) + "\n")
        shutil.rmtree(folder)
