"""Quantizing a checkpoint that does not fit in memory: file to file, one decoder block at a time.

    source/  config.json, model*.safetensors ─▶ map ─▶ quantize matrix by matrix ─▶ target/  what `load` reads

The architecture is built without weights (`source.py`), so everything `plan.py` refuses is refused at once; only whether weights are finite
is found out when a matrix is read. A decoder block becomes one file, and so does every tensor outside the blocks. What is not
compressed goes from the mapped source to the target as it is, in its own dtype.

Memory: the compressed values of one block, and what quantizing one matrix takes (some float32 copies of it). Fused experts that the
checkpoint stores one by one are put together first, in their own dtype: one parameter of one layer. Embeddings cost nothing.

A file takes its name when it is whole and on disk, and the journal (`journal.py`) then says so. Started again after a kill, the work goes
on with the first file that is missing; a finished folder is only reported on. Matrices are quantized as they are stored: what comes out is,
bit for bit, what `compress` makes of a model loaded in the checkpoint's dtype, or in float32.

Calibrated methods see the outputs of a running model, and methods that rewrite a model see several layers at once: both are refused.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from sinq.checkpoint.folder import LAYOUT, save_config, save_layout, save_tensors
from sinq.checkpoint.huggingface import INDEX, Source, TensorReader, shape_of, weight_files
from sinq.checkpoint.journal import FinishedShard, resume, write
from sinq.common.atomic_files import replacing
from sinq.common.errors import NotApplicable
from sinq.common.named import described
from sinq.formats.base import CompressedWeight
from sinq.kernels import chosen
from sinq.methods.base import LayerMethod, Method
from sinq.methods.block_loop import quantize_matrices
from sinq.methods.plan import LayerPlan, require_finite
from sinq.methods.report import CompressionReport, PartReport
from sinq.model.context import Context
from sinq.model.edits import edit_as_json, edit_from_json, weights_edit
from sinq.model.targets import Layers

BLOCK = re.compile(r".*?\.\d+(?=\.)")
"""The name of the decoder block a tensor is of: `model.layers.3`."""
BESIDE = (".json", ".model", ".txt", ".jinja")
"""Endings of the small files beside the weights: tokenizer, generation settings."""


@dataclass(frozen=True)
class Shard:
    """One file to be written: the model's tensors in it, the names they are stored under in the source, and the steps for some."""

    file: str
    names: tuple[tuple[str, str], ...]
    steps: dict[str, LayerPlan]


def stream(
    source: str | Path,
    target: str | Path,
    method: Method,
    context: Context = Context(),
) -> CompressionReport:
    """Quantize the checkpoint in a folder into another folder, in the memory of about one layer, going on where it was killed.

    Args:
        source: folder of a Hugging Face checkpoint in safetensors, one file or several.
        target: folder for the compressed model, which `load` reads; empty, missing, or left by this same work.
        method: a calibration-free `LayerMethod`.
        context: as for `Method.compress`; its device is where matrices are quantized, one at a time, by default the CPU.

    Raises:
        NotApplicable: the method needs more than one matrix at a time.
        ValueError: before any work, if options and checkpoint do not fit, naming layers and tensors, or the target holds other work;
            on the way, naming the layer, if a weight is not finite. What is finished then stays.
        FileNotFoundError: the source lacks a file.
    """
    source, target, place = Path(source), Path(target), torch.device(context.device or "cpu")
    model = shape_of(source)
    plan = _layer_method(method).plan(model, None, context)
    weights = Source(source, model)
    identity = _identity(source, method, context.layers, place)
    done = resume(target, identity)
    pieces = _pieces(weights.names(), plan.steps)
    for piece in context.progress(pieces, "quantizing files", len(pieces)):
        if piece.file not in done:
            with weights.reading() as read, torch.no_grad():
                done[piece.file] = _make(piece, read, target, place)
            write(target, identity, done)
    ordered = {piece.file: done[piece.file] for piece in pieces}
    if not (target / LAYOUT).exists():
        save_config(model.config, model.dtype, target)
        _copy_beside(source, target)
        _finish(target, ordered)
    reports = tuple(PartReport.from_json(layer) for it in ordered.values() for layer in it.layers)
    return CompressionReport(reports, plan.skipped, 0.0, sum(report.seconds for report in reports))


def _layer_method(method: Method) -> LayerMethod:
    name = type(method).__name__
    if not isinstance(method, LayerMethod):
        raise NotApplicable(
            f"stream quantizes one matrix at a time, and {name} needs the whole model; use stream=false"
        )
    if method.statistic is not None:
        needed = method.statistic.described()
        raise NotApplicable(f"stream never runs the model, and {name} needs the {needed}; use stream=false")
    return method


def _identity(source: Path, method: Method, layers: Layers, place: torch.device) -> dict[str, Any]:
    """All that decides what is written. Source files count by name, size and time of change: reading them all takes too long."""
    files = [source / "config.json", *weight_files(source)]
    return {
        "method": described(method),
        "layers": described(layers),
        "kernel": f"{chosen(place).value} on {place.type}",
        "source": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }


def _pieces(names: dict[str, str], steps: Sequence[LayerPlan]) -> list[Shard]:
    """Files to write, in the order of the model.

    Args:
        names: of every tensor in the model → in the source.
    """
    by_name = {step.target.tensor_name: step for step in steps}
    groups = [tuple(group) for _, group in groupby(names.items(), key=lambda pair: _block(pair[0]))]
    return [
        Shard(
            f"model-{k:05d}-of-{len(groups):05d}.safetensors",
            group,
            {name: by_name[name] for name, _ in group if name in by_name},
        )
        for k, group in enumerate(groups, start=1)
    ]


def _block(name: str) -> str:
    match = BLOCK.match(name)
    return match[0] if match else name


def _make(piece: Shard, read: TensorReader, target: Path, place: torch.device) -> FinishedShard:
    """Write one file, and say what is in it. Tensors live only as long as this call."""
    tensors: dict[str, torch.Tensor] = {}
    changes: list[dict[str, Any]] = []
    reports: list[dict[str, Any]] = []
    for name, stored in piece.names:
        tensor, step = read(stored), piece.steps.get(name)
        if step is None:
            tensors[name] = tensor
            continue
        made = [_quantize(step, key, matrix, place) for key, matrix in step.target.split(tensor).items()]
        values = [value for value, _ in made]
        experts = step.target.parameter is not None
        changes.append(edit_as_json(weights_edit(step.target.name, values, experts)))
        tensors |= _named_tensors(step.target.name, values, experts)
        reports += [asdict(report) for _, report in made]
    save_tensors(tensors, target / piece.file)
    return FinishedShard((target / piece.file).stat().st_size, list(tensors), changes, reports)


def _named_tensors(layer: str, values: list[CompressedWeight], experts: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer's values under the names that its modules give them."""
    places = [f"{layer}.{index}" for index in range(len(values))] if experts else [f"{layer}.weight"]
    pairs = zip(places, values, strict=True)
    return {f"{place}.{key}": tensor for place, value in pairs for key, tensor in value.state_dict().items()}


def _quantize(step: LayerPlan, name: str, matrix: torch.Tensor, place: torch.device) -> Any:
    require_finite(name, matrix)
    (made,) = quantize_matrices([(step, name, matrix)], None, place)
    return made


def _copy_beside(source: Path, target: Path) -> None:
    for path in _beside(source):
        with replacing(target / path.name) as scratch:
            shutil.copyfile(path, scratch)


def _beside(source: Path) -> Iterable[Path]:
    own = {"config.json", INDEX, LAYOUT}
    return (
        path
        for path in sorted(source.iterdir())
        if path.suffix in BESIDE and path.name not in own and path.is_file()
    )


def _finish(target: Path, done: dict[str, FinishedShard]) -> None:
    """Write the index of tensors, and last what makes the folder one that `load` takes."""
    files = {name: file for file, it in done.items() for name in it.tensors}
    index = {"metadata": {"total_size": sum(it.nbytes for it in done.values())}, "weight_map": files}
    with replacing(target / INDEX) as scratch:
        scratch.write_text(json.dumps(index, indent=1))
    save_layout([edit_from_json(change) for it in done.values() for change in it.edits], target)
