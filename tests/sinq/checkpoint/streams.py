"""Checkpoints to stream, changes of them, and a method that kills the process it runs in."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from baselines.rtn import RTN
from sinq import SINQ, Grid
from tests.conftest import tiny_model

METHOD = SINQ(Grid(bits=4, group_size=16))


def checkpoint(
    folder: Path, architecture: str = "llama", shard: str = "40KB", dtype: torch.dtype = torch.float32
) -> Path:
    """A Hugging Face folder with a tiny model, its weights in several files."""
    tiny_model(architecture).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name])
        for name in expected
    )


def shards(folder: Path) -> list[Path]:
    return list(folder.glob("model-*.safetensors"))


def shard_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][tensor]


def change(folder: Path, tensor: str, value: torch.Tensor | None) -> None:
    """Put another tensor in the place of one of a checkpoint, or none."""
    path = shard_of(folder, tensor)
    tensors = {name: stored.clone() for name, stored in load_file(path).items() if name != tensor}
    save_file(tensors | ({} if value is None else {tensor: value}), path)


UP = "model.layers.1.mlp.up_proj.weight"


def die_once(marker: Path) -> None:
    """Kill this process if a file is there, and remove the file."""
    if marker.is_file():
        marker.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Fatal(RTN):
    """RTN that kills the process of its first matrix, as long as a file is there; it takes its time."""

    name: ClassVar[str] = "fatal"

    marker: str = ""
    seconds: float = 0.0

    def quantize(self, weight: Tensor, statistic: Any = None) -> Any:
        die_once(Path(self.marker))
        time.sleep(self.seconds)
        return super().quantize(weight, statistic)


def until(condition: Callable[[], object]) -> None:
    """Wait for what other processes do."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
