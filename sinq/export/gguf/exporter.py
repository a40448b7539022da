"""The format `gguf`: codes in blocks of 32, dense tensors, and the tokenizer, in one file.

    bits of a matrix    type    bits per weight there
    4, zero 8           Q4_0    4.5
    2 3 4               Q4_1    5.0
    5, zero 16          Q5_0    5.5
    5                   Q5_1    6.0
    6 8                 Q8_0    8.5    where code − zero is a whole number of one signed byte

Dense matrices have the model's number format (`dtype`: F32, F16, BF16); norms, biases and routers are
float32. `gguf_q4_k` (`refit.py`) is a re-fit. Not covered: Q6_K and the types below four bits, which round
scales; models with another graph (`architecture.py`); several files for one model.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from sinq.common.progress import Progress, silent
from sinq.export.base import Exporter, WrittenMatrix, first, refuse_columns, refuse_levels, refuse_sizes
from sinq.export.gguf.architecture import Architecture
from sinq.export.gguf.blocks import (
    BF16,
    BLOCK,
    F16,
    F32,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q8_0,
    BlockType,
    signed_bytes,
)
from sinq.export.gguf.container import Value, write
from sinq.export.gguf.contents import DENSE, Stack, dense_entries, entry, stacks
from sinq.export.gguf.tokenizer import source_keys
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal

FILE = "model.gguf"
FILE_TYPES = {F32: 0, F16: 1, BF16: 32, Q4_0: 2, Q4_1: 3, Q8_0: 7, Q5_0: 8, Q5_1: 9, Q4_K: 15}
"""Type of most matrices → the number of the whole file's type (`general.file_type`)."""
LOW_BITS = (2, 3)


@dataclass(frozen=True)
class Gguf(Exporter):
    """GGUF, for llama.cpp and what is built on it."""

    name: ClassVar[str] = "gguf"
    read_by: ClassVar[str] = "llama.cpp and what is built on it (Ollama, LM Studio), transformers"

    low_bits: bool = False
    """Write codes of 2 and 3 bits too, which take the 5.0 bits a weight of 4-bit codes there."""

    def check_model(self, source: Source) -> Refusal | None:
        Architecture.of(source.model.config)
        source_keys(source)
        return None

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        return first(
            refuse_columns(view),
            refuse_levels(view),
            refuse_sizes(view, columns=BLOCK),
            _refuse_groups(view),
            self._refuse_bits(view),
            _refuse_halves(view),
        )

    def _refuse_bits(self, view: MatrixView) -> Refusal | None:
        if view.bits in LOW_BITS and not self.low_bits:
            return Refusal(
                f"its {view.bits} bits take 5.0 bits a weight there, as 4-bit codes do",
                "use 4 bits, or low_bits=true to write it nevertheless",
            )
        if view.bits > 5 and not signed_bytes(view):
            return Refusal(
                "code − zero is no signed byte, which is all that Q8_0 has", "use grid.symmetric=true"
            )
        return None

    def kind(self, view: MatrixView) -> BlockType:
        """Return the type of a matrix that was checked."""
        if view.bits > 5:
            return Q8_0
        if view.bits == 5:
            return Q5_0 if view.centred else Q5_1
        return Q4_0 if view.bits == 4 and view.centred else Q4_1

    def write(self, source: Source, folder: Path, progress: Progress = silent) -> list[WrittenMatrix]:
        architecture = Architecture.of(source.model.config)
        found = stacks(source, architecture, self.kind)
        entries = [
            *(entry(source, stack, architecture) for stack in found),
            *dense_entries(source, architecture),
        ]
        keys = architecture.keys() | source_keys(source) | _file_keys(source, found)
        with (folder / FILE).open("wb") as file:
            write(file, keys, entries, progress)
        return [matrix for stack in found for matrix in _written(source, stack)]


def _written(source: Source, stack: Stack) -> list[WrittenMatrix]:
    shapes = {layer: source.matrices[layer].shape for layer in stack.layers}
    return [
        WrittenMatrix(layer, shape, shape[0] * stack.kind.row_bytes(shape[1]))
        for layer, shape in shapes.items()
    ]


def _file_keys(source: Source, found: list[Stack]) -> dict[str, Value]:
    """Return the keys that describe the file; its name is the last part of the model's."""
    kinds = Counter(stack.kind for stack in found) or Counter([DENSE[source.dtype]])
    return {
        "general.name": Path(source.model.config.name_or_path or "").name or source.model.config.model_type,
        "general.quantization_version": 2,
        "general.file_type": FILE_TYPES[kinds.most_common(1)[0][0]],
    }


def _refuse_groups(view: MatrixView) -> Refusal | None:
    if view.group_size % BLOCK == 0:
        return None
    return Refusal(
        f"it has groups of {view.group_size}; blocks have {BLOCK} weights", "use group_size=32 or 64"
    )


def _refuse_halves(view: MatrixView) -> Refusal | None:
    """Return the refusal of scales or offsets that float16 cannot hold: infinite or 0 there."""
    scale, offset = view.scale.half(), (view.zero * view.scale).half()
    lost = (scale == 0) & (view.scale != 0)
    if bool(scale.isfinite().all()) and bool(offset.isfinite().all()) and not bool(lost.any()):
        return None
    low, high = view.scale.abs().min().item(), view.scale.abs().max().item()
    return Refusal(
        f"it has scales from {low:.3g} to {high:.3g}, some of which float16 cannot hold", "use another format"
    )
