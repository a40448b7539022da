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


@dataclass(frozen=True)
class _Layer:
    """A matrix of the files: its parts, and the bytes of its tensors."""

    parts: Parts
    nbytes: int


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
    layers = _decoded(format, stored, folder)
    with _naming(folder / CONFIG):
        dense = without_weights(config, dtype, (), len(stored))
    changes, tensors, parts = _translated(dense, stored, layers, format, folder)
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


def _decoded(format: ForeignFormat, stored: Mapping[str, Tensor], folder: Path) -> dict[str, _Layer]:
    """Return the quantized layers of a checkpoint by their names in the files."""
    layers = {}
    for layer, names in layer_tensors(format, stored).items():
        tensors = {last: stored[name] for last, name in names.items()}
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        with _naming(f"{folder}: {layer}"):
            layers[layer] = _Layer(format.decode(layer, tensors), nbytes)
    if not layers:
        raise ValueError(f"{folder} has no tensor named like model.….{format.codes}, as {format.label} has")
    return layers


def _translated(
    model: "PreTrainedModel",
    stored: Mapping[str, Tensor],
    layers: Mapping[str, _Layer],
    format: ForeignFormat,
    folder: Path,
) -> tuple[list[Edit], dict[str, Tensor], list[PartReport]]:
    """Return edits, tensors and reports of a model that `save` could have written.

    Args:
        model: the dense architecture, on the meta device.
    """
    used = {name for names in layer_tensors(format, stored).values() for name in names.values()}
    weights = {f"{layer}.weight": layers[layer] for layer in layers}
    found, unknown = match(model, [*(name for name in stored if name not in used), *weights])
    if unknown:
        raise ValueError(unfit(folder, type(model).__name__, (), unknown, {}))
    targets = {target.tensor_name: target for target in linear_places(model)}
    changes: list[Edit] = []
    tensors: dict[str, Tensor] = {}
    reports: list[PartReport] = []
    for name, source in found.items():
        if source.keys[0] not in weights:
            tensors[name] = _dense(model, name, source, stored)
            continue
        with _naming(f"{folder}: {name}"):
            values = _values(model, name, source, weights, targets)
        changes.append(targets[name].edit(values))
        tensors |= targets[name].stored_tensors(values)
        nbytes = sum(weights[key].nbytes for key in source.keys)
        reports += _reports(targets[name], values, nbytes)
    return changes, tensors, reports


def _dense(model: "PreTrainedModel", name: str, source: StoredTensor, stored: Mapping[str, Tensor]) -> Tensor:
    tensors = [stored[key] for key in source.keys]
    return tensors[0] if source.conversion is None else fused(model, name, source, tensors)


def _values(
    model: "PreTrainedModel",
    name: str,
    source: StoredTensor,
    weights: Mapping[str, _Layer],
    targets: Mapping[str, Target],
) -> list[QuantizedTensor]:
    """Return the values of a tensor of the model: one, or one for each expert.

    Raises:
        ValueError: the tensor is none of a linear layer, or of another shape; or matrices that are fused are
            of different formats.
    """
    if name not in targets:
        raise ValueError(f"{type(model).__name__} has no linear layer there, which was quantized")
    if missing := [key for key in source.keys if key not in weights]:
        raise ValueError(f"{', '.join(missing[:LISTED])} are dense, and others of them are quantized")
    parts = [weights[key].parts for key in source.keys]
    whole = parts[0] if source.conversion is None else _fused(model, name, source, parts)
    if whole.shape != targets[name].shape:
        found, wanted = ("×".join(map(str, shape)) for shape in (whole.shape, targets[name].shape))
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
