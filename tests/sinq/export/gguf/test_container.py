"""The bytes of a GGUF file, against the reader of the package `gguf`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from sinq.export.gguf.blocks import F16, F32, Q8_0
from sinq.export.gguf.container import Entry, Value, write

KEYS: dict[str, Value] = {
    "general.architecture": "llama",
    "a.whole": 7,
    "a.real": 0.5,
    "a.truth": True,
    "a.texts": ["ab", "ü", ""],
    "a.wholes": [3, -1],
    "a.reals": [0.25, -4.0],
}


def entry(name: str, tensor: torch.Tensor, kind: object = F32) -> Entry:
    return Entry(name, kind, tuple(tensor.shape), lambda: [tensor.contiguous().view(torch.uint8)])  # type: ignore[arg-type]


def test_the_package_reads_keys_and_tensors(tmp_path: Path) -> None:
    single, half = torch.randn(3, 5), torch.randn(2, 3, 7).half()
    blocks = torch.randint(0, 255, (4, Q8_0.row_bytes(64)), dtype=torch.uint8)
    entries = [
        entry("single", single),
        Entry("half", F16, (2, 3, 7), lambda: [part.view(torch.uint8) for part in half]),
        Entry("blocks", Q8_0, (4, 64), lambda: [blocks]),
    ]
    with (tmp_path / "file.gguf").open("wb") as file:
        write(file, KEYS, entries)
    reader = GGUFReader(tmp_path / "file.gguf")
    found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in found.items()} == KEYS
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert np.array_equal(tensors["single"].data, single.numpy())
    assert np.array_equal(tensors["half"].data, half.numpy())
    assert np.array_equal(tensors["blocks"].data, blocks.numpy())
    assert [int(tensor.data_offset) % 32 for tensor in reader.tensors] == [0, 0, 0]


def test_other_bytes_than_the_shape_says(tmp_path: Path) -> None:
    wrong = Entry("wrong", F32, (4, 4), lambda: [torch.zeros(4, dtype=torch.uint8)])
    with (tmp_path / "file.gguf").open("wb") as file, pytest.raises(ValueError, match="wrong has 4 bytes"):
        write(file, KEYS, [wrong])
