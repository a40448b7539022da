"""Saved folders of every format, changes to them, and what loading and running a changed one comes to."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import sinq
from sinq import (
    AdditiveTensor,
    CompressedWeight,
    Grid,
    MixedColumns,
    QuantizedTensor,
    Rotated,
    Rotation,
    SparseOutliers,
)
from sinq.checkpoint.layout import _digest, checksum
from sinq.formats.codebooks import Codebooks
from sinq.formats.mixed_columns import ColumnLevels
from sinq.formats.rounding import choose, divide
from sinq.model.targets import find_targets

TENSORS, LAYOUT = "model.safetensors", "sinq.json"
REFUSALS = (ValueError, FileNotFoundError)


def additive(bits: int) -> Callable[[Tensor], CompressedWeight]:
    def store(weight: Tensor) -> CompressedWeight:
        rows, columns = weight.shape
        codes = torch.randint(0, 1 << bits, (rows, columns // 8, 2))
        books = 0.01 * torch.randn(2, 1 << bits, 8)
        return AdditiveTensor.store(codes, books, torch.ones(rows), Codebooks(2, bits, 8, 1000.0))

    return store


def sparse(weight: Tensor) -> CompressedWeight:
    mask = torch.rand_like(weight) < 0.02
    return SparseOutliers.store(QuantizedTensor.round(weight, Grid()), weight, mask)


def mixed(weight: Tensor) -> CompressedWeight:
    grid = Grid(bits=4, group_size=32)
    levels = ColumnLevels.of(torch.randint(1, 4, (weight.shape[1],)), (1, 2, 3), grid)
    scale, zero = choose(weight, grid)
    position = divide(weight, scale, None) + zero.repeat_interleave(32, 1)
    return MixedColumns.store(levels.nearest(position), levels, grid, scale, zero, {})


def rotated(weight: Tensor) -> CompressedWeight:
    rotation = Rotation.random(weight.shape[1], seed=0)
    return Rotated(rotation, QuantizedTensor.round(rotation.apply(weight), Grid()))


FORMATS: dict[str, Callable[[Tensor], CompressedWeight]] = {
    "sinq": sinq.SINQ(Grid(bits=4, group_size=64)).quantize,
    "sinq3": sinq.SINQ(Grid(bits=3, group_size=64, auxiliary_bits=8, tiling=2)).quantize,
    "additive8": additive(8),
    "additive5": additive(5),
    "sparse": sparse,
    "mixed": mixed,
    "rotated": rotated,
}


def values() -> dict[str, CompressedWeight]:
    """A value of 64 × 128 of every format."""
    torch.manual_seed(0)
    weight = 0.1 * torch.randn(64, 128)
    return {name: make(weight) for name, make in FORMATS.items()}


def save_clean(folder: Path, name: str) -> None:
    """Save a model of one block, all of its layers in one format."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model: nn.Module = LlamaForCausalLM(config).eval().requires_grad_(False)
    for target in find_targets(model):
        target.replace(model, [FORMATS[name](target.tensor.detach())])
    sinq.save(model, folder)


@dataclass(frozen=True)
class Change:
    """A change to a folder; numbers choose what is changed, by remainder."""

    kind: str
    seed: int
    sealed: bool
    """Whether checksums are computed again, as by a program that writes such a folder itself."""


BYTES = ("flip", "flip_header", "flip_layout", "truncate")
TENSOR = ("cut", "repeat", "retype", "drop", "copy", "rename", "swap", "fill", "reshape")
JSON = ("field", "field_gone", "edit_twice", "edits_shuffled")
NUMBERS = (0, 1, -1, 2, 3, 7, 8, 64, 63, 2**31, 2**62, -(2**62), 1.5, float("nan"), 1e300)
ODD: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "../x",
    "os.system",
    [],
    {},
    [[]],
    [0],
    [-1, 2],
    {"a": 1},
    *NUMBERS,
)
DTYPES = (torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)


def apply(change: Change, folder: Path) -> None:
    """Change a folder in place."""
    choice = random.Random(change.seed)
    if change.kind in BYTES:
        _bytes(change.kind, choice, folder)
        return
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
    layout = json.loads((folder / LAYOUT).read_text())
    if change.kind in TENSOR:
        _tensor(change.kind, choice, tensors)
    else:
        _json(change.kind, choice, layout)
    if change.sealed:
        _describe(layout, tensors)
        layout["checksums"] = {name: checksum(tensor) for name, tensor in tensors.items()}
        layout["digest"] = _digest(layout)
    held = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(held, folder / TENSORS, metadata={"format": "pt"})
    (folder / LAYOUT).write_text(json.dumps(layout))


def _bytes(kind: str, choice: random.Random, folder: Path) -> None:
    path = folder / (LAYOUT if kind == "flip_layout" else TENSORS)
    content = bytearray(path.read_bytes())
    if kind == "truncate":
        path.write_bytes(content[: choice.randrange(len(content))])
        return
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(choice.choice((1, 1, 2, 20))):
        content[choice.randrange(header if kind == "flip_header" else len(content))] ^= 1 << choice.randrange(
            8
        )
    path.write_bytes(content)


def _tensor(kind: str, choice: random.Random, tensors: dict[str, Tensor]) -> None:
    # those of compressed weights twice as often as others
    names = [name for name in tensors if ".weight." in name] * 2 + list(tensors)
    name, other = choice.choice(names), choice.choice(names)
    tensor = tensors[name]
    if kind == "cut":
        tensors[name] = tensor[: choice.randrange(len(tensor))] if tensor.ndim else tensor
    elif kind == "repeat":
        tensors[name] = torch.cat([tensor] * choice.choice((2, 3, 100)))
    elif kind == "retype":
        tensors[name] = tensor.float().to(choice.choice(DTYPES))
    elif kind == "drop":
        del tensors[name]
    elif kind == "copy":
        tensors[f"{name}{choice.choice(('_more', '.x', ''))}"] = tensor.clone()
    elif kind == "rename":
        tensors[choice.choice((other, f"{name}x", ""))] = tensors.pop(name)
    elif kind == "swap":
        tensors[name], tensors[other] = tensors[other], tensor
    elif kind == "fill":
        limits = torch.finfo(tensor.dtype) if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
        number = choice.choice((limits.min, limits.max, 0, *([float("nan")] * tensor.is_floating_point())))
        flat = tensor.int() if tensor.dtype is torch.uint16 else tensor
        flat.reshape(-1)[choice.randrange(flat.numel()) :] = number
        tensors[name] = flat.to(tensor.dtype)
    else:
        tensors[name] = tensor.reshape(choice.choice(((-1,), (1, -1), (-1, 1), (1, 1, -1))))


def _json(kind: str, choice: random.Random, layout: dict[str, Any]) -> None:
    if kind == "edit_twice":
        layout["edits"].insert(choice.randrange(len(layout["edits"])), choice.choice(layout["edits"]))
    elif kind == "edits_shuffled":
        a, b = (choice.randrange(len(layout["edits"])) for _ in range(2))
        first, second = layout["edits"][a], layout["edits"][b]
        first["layer"], second["layer"] = second["layer"], first["layer"]
    else:
        places = [place for place in _places(layout) if place[1] not in ("checksums", "digest")]
        parent, key = choice.choice(places)
        if kind == "field_gone" and isinstance(parent, dict):
            del parent[key]
        else:
            parent[key] = choice.choice(ODD)


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every entry of an object or a list, at any depth."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in pairs:
        if key != "checksums":
            found.append((content, key))
            found += _places(value) if isinstance(value, dict | list) else []
    return found


def _describe(layout: Any, tensors: dict[str, Tensor]) -> None:
    """Let the edits describe the tensors that there are, where they describe any."""
    for edit in layout.get("edits") or []:
        try:
            described, prefix = edit["weight"]["tensors"], f"{edit['layer']}.weight."
            edit["weight"]["tensors"] = {
                key: [
                    str(tensors[prefix + key].dtype).removeprefix("torch."),
                    list(tensors[prefix + key].shape),
                ]
                if prefix + key in tensors
                else described[key]
                for key in described
            }
        except (KeyError, TypeError):  # the change is in the description
            continue


def logits(folder: Path) -> list[Tensor]:
    """What a model answers to one token, which kernels read codes for, and to forty, which are multiplied."""
    model = sinq.load(folder)
    with torch.no_grad():
        return [model(torch.arange(count)[None] % 90 + 2).logits for count in (1, 40)]


def outcome(folder: Path, expected: list[Tensor]) -> str:
    """Return "right", "another answer", or "refused"; "unclear" and the message; other errors are raised."""
    try:
        found = logits(folder)
    except REFUSALS as error:
        lines = str(error).splitlines()
        is_clear = len(lines) == 1 and str(folder) in lines[0]
        return "refused" if is_clear else f"unclear: {type(error).__name__} {error}"
    return "right" if all(map(torch.equal, found, expected)) else "another answer"


def try_changes(clean: Path, changes: list[Change], results: Path) -> None:
    """Write the outcome of each change to a copy of a folder, a line each."""
    torch.set_num_threads(1)
    expected = logits(clean)
    for change in changes:
        folder = results.parent / f"{results.name}-changed"
        shutil.copytree(clean, folder, dirs_exist_ok=True)
        apply(change, folder)
        with results.open("a") as out:
            out.write(json.dumps(outcome(folder, expected)) + "\n")
