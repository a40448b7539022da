"""A model as exporters see it: views of its compressed matrices, and dense tensors, block by block.

Names are those of a checkpoint of the dense model. Views and tensors are made when they are asked for, so
that few are in memory beside the model, whose own tensors `load` leaves in the mapped file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinq.checkpoint.folder import stored_tensors
from sinq.checkpoint.shards import block_of
from sinq.export.folding import Folds, folds_of
from sinq.export.matrices import GATE_UP, Matrix, compressed_matrices
from sinq.export.view import MatrixView
from sinq.formats.grid import Grid
from sinq.formats.scalar import QuantizedTensor
from sinq.model.stored import StoredNumbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """Names of the matrices and dense tensors of a decoder block, or of one tensor outside the blocks."""

    matrices: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Source:
    """A model to be exported."""

    model: "PreTrainedModel"
    dtype: torch.dtype
    """Number format of dense tensors in the exported model, and of scales where a format leaves it open."""
    folds: Folds = field(default_factory=Folds)
    tokenizer: Any = None
    """The model's tokenizer, or None; its files are written by the frame."""
    files: tuple[Path, ...] = ()
    """Small files (tokenizer, chat template) that are copied."""
    requantized: Mapping[str, Grid] = field(default_factory=dict)
    """Grids to which matrices are rounded a second time, by name."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the model card, such as method and perplexity."""

    @cached_property
    def matrices(self) -> dict[str, Matrix]:
        """The compressed matrices by name, in the order of the model."""
        return compressed_matrices(self.model)

    def find_folds(self) -> Folds:
        """Return the folds of the model's column scales."""
        return folds_of(self.model, self.matrices)

    def view(self, name: str) -> MatrixView:
        """Return a matrix as it is exported, made now."""
        view = self.folds.view(self.matrices[name].view())
        return view if name not in self.requantized else rounded(view, self.requantized[name])

    @cached_property
    def dense(self) -> dict[str, Tensor]:
        """The dense tensors under their names in the model; views, without copies."""
        modules = self.model.named_modules(remove_duplicate=False)
        stores = {name for name, module in modules if isinstance(module, StoredNumbers)}
        tensors = stored_tensors(self.model)
        return {name: held for name, held in tensors.items() if name.rpartition(".")[0] not in stores}

    @cached_property
    def tensors(self) -> dict[str, tuple[str, int | None, slice]]:
        """Names of dense tensors in a checkpoint, and in the model with the expert and rows of fused ones."""
        found: dict[str, tuple[str, int | None, slice]] = {}
        for name, tensor in self.dense.items():
            owner, _, parameter = name.rpartition(".")
            if not owner.endswith(".experts") or tensor.ndim != 3:
                found[name] = (name, None, slice(None))
                continue
            half = tensor.shape[1] // 2
            parts = {"gate_proj": slice(0, half), "up_proj": slice(half, 2 * half)}
            for expert in range(len(tensor)):
                for part, rows in (parts if parameter == GATE_UP else {parameter: slice(None)}).items():
                    found[f"{owner}.{expert}.{part}.weight"] = (name, expert, rows)
        return found

    def tensor(self, name: str) -> Tensor:
        """Return a dense tensor as it is exported, on the CPU; floats have `dtype`."""
        stored, expert, rows = self.tensors[name]
        tensor = self.folds.tensor(stored, self.dense[stored])
        if expert is not None:
            tensor = tensor[expert][rows]
        return tensor.to("cpu", self.dtype if tensor.is_floating_point() else tensor.dtype).contiguous()

    def blocks(self) -> Iterator[Block]:
        """Yield what is exported, in the order of the model."""
        names = [*self.tensors, *self.matrices]
        order = {block: number for number, block in enumerate(dict.fromkeys(map(block_of, names)))}
        for _, group in groupby(sorted(names, key=lambda name: order[block_of(name)]), key=block_of):
            members = list(group)
            yield Block(
                tuple(name for name in members if name in self.matrices),
                tuple(name for name in members if name in self.tensors),
            )


def rounded(view: MatrixView, grid: Grid) -> MatrixView:
    """Return a view of the matrix of another one, rounded to nearest on a grid."""
    return MatrixView.of(view.name, QuantizedTensor.round(view.dense(), grid))
