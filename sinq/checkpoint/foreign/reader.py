"""A model from a checkpoint that another project quantized.

Its layers hold values of ours, its other tensors are as stored. It is what `sinq.save` could have written, so
it can be saved; and it is made in the same steps as a loaded model (`folder.py`): names, types and shapes are
compared with the architecture, without weights, before memory is taken.

A layer of the files is found in the model under the name that a dense `weight` would have there. So where
transformers fuses experts that are stored one by one, their codes, scales and zeros are fused by the same
rules.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinq.checkpoint.configuration import CONFIG, read_config, read_generation, without_weights
from sinq.checkpoint.folder import assemble, require_tensors
from sinq.checkpoint.foreign.base import ForeignFormat, layer_tensors
from sinq.checkpoint.foreign.formats import STATED, stated_format, stated_quantization
from sinq.checkpoint.foreign.parts import Parts
from sinq.checkpoint.huggingface import FLOATS, StoredTensor, fused, match
from sinq.checkpoint.weight_files import LISTED, all_tensors, unfit
from sinq.formats.scalar import QuantizedTensor
from sinq.methods.report import CompressionReport, PartReport, measured
from sinq.model.edits import Edit
from sinq.model.targets import Target, linear_places

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ForeignModel:
    """A model that another project quantized."""

    model: "PreTrainedModel"
    report: CompressionReport
    """Its matrices, with the bytes that they take in the files; errors are not known."""
    stated: Mapping[str, Any]
    """What the configuration says of its quantization."""
    stored_dtype: torch.dtype
    """The number format of what is not quantized."""
    nbytes: int
    """Bytes of all tensors that the model uses, in the files."""

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the model with dense matrices in the number format of its other tensors."""
        weights = sum(part.parameters for part in self.report.parts)
        return self.nbytes - self.report.nbytes + weights * self.stored_dtype.itemsize


@dataclass(frozen=True, eq=False)
class _Weights:
    """The quantized matrices of a checkpoint, by the names that dense weights would have; decoded when read.

    Raises:
        ValueError: there are none.
    """

    folder: Path
    format: ForeignFormat
    tensors: Mapping[str, Tensor]
    """All tensors of the files."""

    def __post_init__(self) -> None:
        if not self.layers:
            wanted = f"*.{self.format.codes}, as {self.format.label} has"
            raise ValueError(f"{self.folder} has no tensor named like {wanted}")

    @cached_property
    def layers(self) -> dict[str, dict[str, str]]:
        """The stored name of each tensor of a matrix, by name of the weight."""
        found = layer_tensors(self.format, self.tensors)
        return {f"{layer}.weight": names for layer, names in found.items()}

    @property
    def dense(self) -> list[str]:
        """The names of all other tensors."""
        used = {name for names in self.layers.values() for name in names.values()}
        return [name for name in self.tensors if name not in used]

    def parts(self, weight: str) -> Parts:
        """Return the parts of a matrix."""
        layer = weight.removesuffix(".weight")
        tensors = {last: self.tensors[name] for last, name in self.layers[weight].items()}
        with _naming(f"{self.folder}: {layer}"):
            return self.format.decode(layer, tensors)

    def nbytes(self, weight: str) -> int:
        """Return the bytes of a matrix in the files."""
        return sum(self.tensors[name].nbytes for name in self.layers[weight].values())


def load_foreign(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ForeignModel:
    """Load a checkpoint that another project quantized, for inference.

    Args:
        dtype: dtype of the tensors that are not quantized, and so of the computation; by default as stored.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the format or an option of it is not read; files are damaged, do not fit each other, or do
            not fit the architecture; the message names the file, the layer and what is accepted.
    """
    folder = Path(folder)
    format = stated_format(folder)
    stored = all_tensors(folder)
    config, settings = _dense_config(folder, len(stored)), read_generation(folder)
    stored_dtype = config.dtype or _first_float(stored)
    dtype = dtype or stored_dtype
    weights = _Weights(folder, format, stored)
    with _naming(folder / CONFIG):
        dense = without_weights(config, dtype, (), len(stored))
    changes, tensors, parts = _translated(dense, weights)
    with _naming(folder):
        require_tensors(without_weights(config, dtype, changes, len(tensors)), tensors, folder)
    model = assemble(config, settings, changes, tensors, folder, device, dtype)
    report = CompressionReport(tuple(parts), method=format.label)
    names = dense.state_dict()
    others = sum(tensor.nbytes for name, tensor in tensors.items() if name in names)
    stated = stated_quantization(folder) or {}
    return ForeignModel(model, report, stated, stored_dtype, others + report.nbytes)


@contextmanager
def _naming(path: object) -> Iterator[None]:
    """Put what an error is about before it: a file, or a layer."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _dense_config(folder: Path, tensors: int) -> Any:
    """Return the configuration of a folder without what it states of its quantization."""
    config: Any = read_config(folder, tensors)
    if hasattr(config, STATED):
        delattr(config, STATED)
    return config


def _first_float(stored: Mapping[str, Tensor]) -> torch.dtype:
    """Return the dtype of the first floating-point tensor, for a configuration without a dtype."""
    dtypes = (tensor.dtype for tensor in stored.values() if tensor.dtype in FLOATS.values())
    return next(dtypes, torch.float32)


def _translated(
    model: "PreTrainedModel", weights: _Weights
) -> tuple[list[Edit], dict[str, Tensor], list[PartReport]]:
    """Return edits, tensors and reports of a model that `save` could have written.

    Args:
        model: the dense architecture, on the meta device.
    """
    found, unknown = match(model, [*weights.dense, *weights.layers])
    if unknown:
        raise ValueError(unfit(weights.folder, type(model).__name__, (), unknown, {}))
    targets = {target.tensor_name: target for target in linear_places(model)}
    changes: list[Edit] = []
    tensors: dict[str, Tensor] = {}
    reports: list[PartReport] = []
    for name, source in found.items():
        if not any(key in weights.layers for key in source.keys):
            tensors[name] = _dense(model, name, source, weights.tensors)
            continue
        target = targets.get(name)
        with _naming(f"{weights.folder}: {name}"):
            values = _values(model, target, source, weights)
        assert target is not None
        changes.append(target.edit(values))
        tensors |= target.stored_tensors(values)
        reports += _reports(target, values, sum(map(weights.nbytes, source.keys)))
    return changes, tensors, reports


def _dense(model: "PreTrainedModel", name: str, source: StoredTensor, stored: Mapping[str, Tensor]) -> Tensor:
    tensors = [stored[key] for key in source.keys]
    return tensors[0] if source.conversion is None else fused(model, name, source, tensors)


def _values(
    model: "PreTrainedModel", target: Target | None, source: StoredTensor, weights: _Weights
) -> list[QuantizedTensor]:
    """Return the values of a tensor of the model: one, or one for each expert.

    Raises:
        ValueError: the tensor is none of a linear layer, or of another shape; or matrices that are fused are
            of different formats.
    """
    if target is None:
        raise ValueError(f"{type(model).__name__} has no linear layer there, which was quantized")
    if missing := [key for key in source.keys if key not in weights.layers]:
        raise ValueError(f"{', '.join(missing[:LISTED])} are dense, and others of them are quantized")
    parts = [weights.parts(key) for key in source.keys]
    whole = parts[0] if source.conversion is None else _fused(model, target.tensor_name, source, parts)
    if whole.shape != target.shape:
        found, wanted = ("×".join(map(str, shape)) for shape in (whole.shape, target.shape))
        raise ValueError(f"it is quantized as {found}; the model has it as {wanted}")
    return whole.values()


def _fused(model: "PreTrainedModel", name: str, source: StoredTensor, parts: list[Parts]) -> Parts:
    """Return matrices as the fused ones of the model: each kind of tensor by transformers' conversion."""
    tiled = [part.tiled() for part in parts]
    first = tiled[0]
    if any(_form(part) != _form(first) for part in tiled):
        raise ValueError(f"{len(parts)} matrices are fused into it, which have several formats")

    def joined(kind: str) -> Any:
        tensors = [getattr(part, kind) for part in tiled]
        return None if tensors[0] is None else fused(model, name, source, tensors)

    scales = joined("scale"), joined("zero"), joined("col_scale")
    return Parts(first.bits, joined("codes"), *scales, first.levels)


def _form(part: Parts) -> tuple[object, ...]:
    return part.bits, part.group_size, part.levels, part.zero is None, part.col_scale is None


def _reports(target: Target, values: list[QuantizedTensor], nbytes: int) -> list[PartReport]:
    """Report on the matrices of a target, which take `nbytes` together in the files."""
    names = list(target.matrices())
    return [
        PartReport(
            kind="weight",
            name=name,
            dense_parameters=value.shape[0] * value.shape[1],
            parameters=value.shape[0] * value.shape[1],
            nbytes=nbytes // len(values),
            relative_error=None,
            seconds=0.0,
            decisions=measured(value.notes),
            shape=value.shape,
            group_size=value.group_size,
        )
        for name, value in zip(names, values, strict=True)
    ]
