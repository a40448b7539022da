"""Formats that are a Hugging Face folder: `config.json` with a description, and tensors in safetensors.

    config.json                        the dense model's configuration, and a description of the quantization
    generation_config.json             the settings by which it generates
    model-00001-of-00032.safetensors   a file for each decoder block, and for each tensor outside the blocks
    model.safetensors.index.json       the file of each tensor

A format says under which names and in which layout a matrix is stored (`tensors`), and how that is described
(`description`).
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sinq.checkpoint.configuration import CONFIG, GENERATION, write_config, write_generation
from sinq.checkpoint.weight_files import INDEX
from sinq.common.progress import Progress, silent
from sinq.export.base import Exporter, WrittenMatrix
from sinq.export.source import Block, Source
from sinq.export.view import MatrixView

HEAD = "lm_head"


@dataclass(frozen=True)
class Described:
    """Facts of an exported matrix that a description is made of."""

    name: str
    bits: int
    group_size: int
    centred: bool
    """True if its zeros are all 2^(bits − 1)."""


class FolderExporter(Exporter):
    """A format of a Hugging Face folder."""

    @abstractmethod
    def tensors(self, view: MatrixView, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of a matrix under their full names."""

    @abstractmethod
    def description(
        self, layers: Sequence[Described], dense: Sequence[str], source: Source
    ) -> dict[str, Any]:
        """Return entries of `config.json` that describe the quantization.

        Args:
            layers: the quantized layers.
            dense: names of linear layers that stayed dense.
        """

    def metadata(self, views: Sequence[MatrixView], tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the metadata of a file with the tensors of these views, and dense ones."""
        return {"format": "pt"}

    def write(self, source: Source, folder: Path, progress: Progress = silent) -> list[WrittenMatrix]:
        blocks = list(source.blocks())
        files: dict[str, str] = {}
        written: list[WrittenMatrix] = []
        layers: list[Described] = []
        total = 0
        for number, block in enumerate(progress(blocks, "writing files", len(blocks)), start=1):
            file = f"model-{number:05d}-of-{len(blocks):05d}.safetensors"
            views = [source.view(name) for name in block.matrices]
            tensors = self._block(block, views, source, written)
            save_file(tensors, folder / file, metadata=self.metadata(views, tensors))
            layers += [Described(v.name, v.bits, v.group_size, v.centred) for v in views]
            files |= dict.fromkeys(tensors, file)
            total += sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=1))
        self._write_config(source, layers, folder)
        return written

    def _block(
        self, block: Block, views: Sequence[MatrixView], source: Source, written: list[WrittenMatrix]
    ) -> dict[str, Tensor]:
        """Return the tensors of a block, and note the sizes of its matrices."""
        tensors = {name: source.tensor(name) for name in block.tensors}
        for view in views:
            stored = {key: held.cpu().contiguous() for key, held in self.tensors(view, source.dtype).items()}
            written.append(WrittenMatrix(view.name, view.shape, sum(held.nbytes for held in stored.values())))
            tensors |= stored
        return tensors

    def _write_config(self, source: Source, layers: Sequence[Described], folder: Path) -> None:
        write_config(source.model.config, source.dtype, folder / CONFIG)
        write_generation(source.model, folder / GENERATION)
        content = json.loads((folder / CONFIG).read_text())
        if any(layer.name == HEAD for layer in layers):
            content["tie_word_embeddings"] = False  # the head is a tensor by itself
        content |= self.description(layers, dense_linears(source), source)
        (folder / CONFIG).write_text(json.dumps(content, indent=1))


def dense_linears(source: Source) -> list[str]:
    """Return the names of linear layers that stayed dense: routers too, and the output head even if tied."""
    embedding = source.model.get_input_embeddings()
    names = {name: stored for name, (stored, *_) in source.tensors.items() if name.endswith(".weight")}
    found = [
        name.removesuffix(".weight")
        for name, stored in names.items()
        if source.tensor(name).ndim == 2 and source.model.get_parameter(stored) is not embedding.weight
    ]
    return found if HEAD in source.matrices else list(dict.fromkeys([*found, HEAD]))
