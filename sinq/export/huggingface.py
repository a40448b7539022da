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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sinq.checkpoint.configuration import CONFIG, GENERATION, write_generation
from sinq.checkpoint.weight_files import INDEX
from sinq.common.progress import Progress, silent
from sinq.export.base import Exporter, WrittenMatrix, short
from sinq.export.source import Block, Source
from sinq.export.view import MatrixView, Refusal

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

    def metadata(self, source: Source) -> dict[str, str]:
        """Return the metadata of every file."""
        return {"format": "pt"}

    def arranged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a block as the format names and groups them."""
        return tensors

    def write(self, source: Source, folder: Path, progress: Progress = silent) -> list[WrittenMatrix]:
        blocks, metadata = list(source.blocks()), self.metadata(source)
        files: dict[str, str] = {}
        written: list[WrittenMatrix] = []
        layers: list[Described] = []
        total = 0
        for number, block in enumerate(progress(blocks, "writing files", len(blocks)), start=1):
            file = f"model-{number:05d}-of-{len(blocks):05d}.safetensors"
            views = [source.view(name) for name in block.matrices]
            tensors = self.arranged(self._block(block, views, source, written))
            save_file(tensors, folder / file, metadata=metadata)
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
        write_generation(source.model, folder / GENERATION)
        content = _configuration(source)
        content |= self.description(layers, dense_linears(source), source)
        (folder / CONFIG).write_text(json.dumps(content, indent=1))


def _configuration(source: Source) -> dict[str, Any]:
    """Return the dense model's configuration with all defaults, which readers choose differently.

    What transformers 5 renamed, or moved into `rope_parameters`, is also there under the names from before:
    mlx-lm's llama would take a base of 10,000 without a word.
    """
    config = source.model.config
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    content["architectures"] = [type(source.model).__name__]
    content["dtype"] = content["torch_dtype"] = short(source.dtype)
    content |= {old: content[new] for old, new in config.attribute_map.items() if new in content}
    rotary = content.get("rope_parameters")
    if isinstance(rotary, dict) and "rope_theta" in rotary:
        scaling = None if rotary.get("rope_type", "default") == "default" else rotary
        content |= {"rope_theta": rotary["rope_theta"], "rope_scaling": scaling}
    return content


def dense_linears(source: Source) -> list[str]:
    """Return the names of linear layers that stayed dense: routers too, and the output head even if tied."""
    embedding: Any = source.model.get_input_embeddings().weight
    found = [
        name.removesuffix(".weight")
        for name, (stored, expert, _) in source.tensors.items()
        if name.endswith(".weight")
        and (expert is not None or source.dense[stored].ndim == 2)
        and source.dense[stored].data_ptr() != embedding.data_ptr()
    ]
    return found if HEAD in source.matrices else list(dict.fromkeys([*found, HEAD]))


def refuse_experts(source: Source) -> Refusal | None:
    """Return the refusal of compressed experts, for formats whose readers know linear layers alone."""
    found = next((name for name in source.matrices if ".experts." in name), None)
    if found is None:
        return None
    return Refusal(
        f"{found} is an expert's, and readers of the format quantize linear layers alone",
        "leave experts dense with layers.exclude, or export as compressed_tensors",
    )


def refuse_mixed(source: Source) -> Refusal | None:
    """Return the refusal of layers of several kinds, or dense ones, for formats that describe one kind."""
    kinds: dict[str, str] = {}
    for name, matrix in source.matrices.items():
        grid = getattr(matrix.value, "grid", None)
        kinds.setdefault(f"{grid.bits} bits in groups of {grid.group_size}" if grid else "no grid", name)
    if len(kinds) > 1:
        listed = ", ".join(f"{name} {kind}" for kind, name in kinds.items())
        return Refusal(
            f"it has {listed}", "use one grid for all layers, or export as compressed_tensors or mlx"
        )
    return None


def refuse_dense(source: Source) -> Refusal | None:
    """Return the refusal of dense linear layers in blocks, for formats that cannot name them."""
    found = next((name for name in dense_linears(source) if name != HEAD), None)
    if found is None:
        return None
    return Refusal(
        f"{found} stayed dense, and the format quantizes every layer but the head",
        "compress all layers, or export as compressed_tensors, mlx or awq",
    )
