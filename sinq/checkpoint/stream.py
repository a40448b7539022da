"""Quantizing a checkpoint that does not fit in memory: file to file, one decoder block at a time.

    source/  config.json, model*.safetensors ─▶ map ─▶ quantize each matrix ─▶ target/  (see `load`)

The architecture is built without weights (`huggingface.py`), so everything that `methods/plan.py` refuses is
refused at once. Only weights that cannot be computed with (NaN, 1e30) are found later, when a matrix is
read. A decoder block becomes one file, and so does every tensor outside the blocks. Tensors that are not
compressed are copied from the mapped source to the target, in their own dtype.

Memory: the compressed values of one block, and the working memory of quantizing one matrix (some float32
copies of it). Fused experts that the checkpoint stores one by one are assembled first, in their own dtype:
one parameter of one layer. Embeddings take no memory.

A file is renamed to its final name when it is complete and on disk, and the journal (`journal.py`) then lists
it. Restarted after a kill, the work continues with the first file that is missing or damaged; of a finished
folder only the small files are written again. Matrices are quantized as they are stored: the result is, bit
for bit, that of `compress` on a model loaded in the checkpoint's dtype, or in float32.

Calibrated methods need the outputs of a running model, and methods that rewrite a model need several layers
at once: both are refused.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sinq.checkpoint.card import CARD, model_card
from sinq.checkpoint.configuration import CONFIG, GENERATION, write_config, write_generation
from sinq.checkpoint.folder import replacing_all, stored_tensors, write_tensors
from sinq.checkpoint.huggingface import Source, TensorReader, shape_of
from sinq.checkpoint.journal import JOURNAL, FinishedShard, resume, write
from sinq.checkpoint.layout import LAYOUT, checksum, write_layout
from sinq.checkpoint.weight_files import INDEX, tensors_of, weight_files
from sinq.common.atomic_files import replacing
from sinq.common.errors import USE_COMPRESS, NotApplicable
from sinq.common.inside import regular_file
from sinq.common.named import described
from sinq.kernels import chosen
from sinq.methods.base import LayerMethod, Method
from sinq.methods.block_loop import quantize_matrices
from sinq.methods.plan import LayerPlan, require_usable
from sinq.methods.report import CompressionReport, PartReport
from sinq.model.context import Context
from sinq.model.edits import edit, edit_as_json, edit_from_json
from sinq.model.targets import Layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = re.compile(r".*?\.\d+(?=\.)")
"""Pattern of the decoder block in the name of a tensor: `model.layers.3`."""
BESIDE = (".json", ".model", ".txt", ".jinja")
"""Endings of the small files beside the weights: tokenizer, generation settings."""


@dataclass(frozen=True)
class Shard:
    """A file to be written."""

    file: str
    names: tuple[tuple[str, str], ...]
    """(name in the model, name in the source) of each tensor."""
    plans: dict[str, LayerPlan]
    """Plans of the tensors that are compressed, by name in the model."""


def stream(
    source: str | Path,
    target: str | Path,
    method: Method,
    context: Context = Context(),
) -> CompressionReport:
    """Quantize a checkpoint from one folder into another, in the memory of about one layer.

    After a kill, the same call continues the work.

    Args:
        source: folder of a Hugging Face checkpoint in safetensors, one file or several.
        target: folder for the compressed model, which `load` reads; empty, missing, or left by the same call.
        method: a calibration-free `LayerMethod`.
        context: as for `Method.compress`; matrices are quantized on its device, by default the CPU.

    Raises:
        NotApplicable: the method needs more than one matrix at a time.
        JournalError: (a ValueError) the target holds other work, or its journal is damaged.
        ValueError: before any work, if options and checkpoint do not fit, naming layers and tensors; later,
            naming the layer, if a weight cannot be computed with. Finished files then stay.
        FileNotFoundError: the source lacks a file.
    """
    source, target = Path(source), Path(target)
    device = torch.device(context.device or "cpu")
    model = shape_of(source)
    plan = _layer_method(method).plan(model, None, context)
    if plan.together:
        layers = " and ".join(plan.together[0][:2])
        raise NotApplicable(f"stream quantizes one layer at a time, and {layers} go together; {USE_COMPRESS}")
    weights, small = Source(source, model), small_files(source)
    identity = _identity(source, method, context.layers, device)
    done = {
        name: shard for name, shard in resume(target, identity).items() if _is_whole(target / name, shard)
    }
    shards = _shards(weights.names(), plan.steps)
    for shard in context.progress(shards, "quantizing files", len(shards)):
        if shard.file not in done:
            with weights.reading() as read, torch.no_grad():
                done[shard.file] = _make(shard, read, target, device)
            write(target, identity, done)
    ordered = {shard.file: done[shard.file] for shard in shards}
    for path in small:
        with replacing(target / path.name) as scratch:
            shutil.copyfile(path, scratch)
    _finish(target, model, ordered)
    reports = tuple(PartReport.from_json(layer) for shard in ordered.values() for layer in shard.layers)
    seconds = sum(report.seconds for report in reports)
    return CompressionReport(reports, plan.skipped, plan.left_dense, 0.0, seconds, method=method.label)


def _layer_method(method: Method) -> LayerMethod:
    """Return the method, or raise `NotApplicable` if it needs more than one matrix at a time."""
    name = type(method).__name__
    if not isinstance(method, LayerMethod):
        raise NotApplicable(
            f"stream quantizes one matrix at a time, and {name} needs the whole model; {USE_COMPRESS}"
        )
    if method.statistic is not None:
        needed = method.statistic.described()
        raise NotApplicable(f"stream never runs the model, and {name} needs the {needed}; {USE_COMPRESS}")
    return method


def _identity(source: Path, method: Method, layers: Layers, device: torch.device) -> dict[str, Any]:
    """Return the values that determine the written files, as plain JSON.

    Source files are identified by name, size and time of change: reading them all takes too long.
    """
    files = [source / "config.json", *weight_files(source)]
    return {
        "method": described(method),
        "layers": described(layers),
        "kernel": f"{chosen(device).value} on {device.type}",
        "source": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }


def _shards(names: dict[str, str], plans: Sequence[LayerPlan]) -> list[Shard]:
    """Return the files to write, in the order of the model.

    Args:
        names: name in the source of every tensor by its name in the model.
    """
    by_name = {layer.target.tensor_name: layer for layer in plans}
    groups = [tuple(group) for _, group in groupby(names.items(), key=lambda pair: block_of(pair[0]))]
    return [
        Shard(
            f"model-{k:05d}-of-{len(groups):05d}.safetensors",
            group,
            {name: by_name[name] for name, _ in group if name in by_name},
        )
        for k, group in enumerate(groups, start=1)
    ]


def block_of(name: str) -> str:
    """Return the decoder block of a tensor, or the name of one outside the blocks."""
    match = BLOCK.match(name)
    return match[0] if match else name


def _make(shard: Shard, read: TensorReader, target: Path, device: torch.device) -> FinishedShard:
    """Write one file, and return its content. Tensors live only as long as this call."""
    tensors: dict[str, torch.Tensor] = {}
    changes: list[dict[str, Any]] = []
    reports: list[dict[str, Any]] = []
    for name, stored in shard.names:
        tensor, layer = read(stored), shard.plans.get(name)
        if layer is None:
            tensors[name] = tensor
            continue
        quantized = [
            _quantize(layer, key, matrix, device) for key, matrix in layer.target.split(tensor).items()
        ]
        values = [value for value, _ in quantized]
        changes.append(edit_as_json(layer.target.edit(values)))
        tensors |= layer.target.stored_tensors(values)
        reports += [asdict(report) for _, report in quantized]
    with replacing(target / shard.file) as scratch:
        checksums = write_tensors(tensors, scratch)
    return FinishedShard((target / shard.file).stat().st_size, checksums, changes, reports)


def _is_whole(path: Path, shard: FinishedShard) -> bool:
    """Return whether a file has the tensors that the journal says."""
    try:
        return {name: checksum(tensor) for name, tensor in tensors_of(path).items()} == shard.tensors
    except ValueError:
        return False


def _quantize(layer: LayerPlan, name: str, matrix: torch.Tensor, device: torch.device) -> Any:
    """Return the compressed weight and the report of a matrix (out, in)."""
    require_usable(name, matrix)
    (quantized,) = quantize_matrices([(layer, name, matrix)], None, device)
    return quantized


def small_files(source: Path) -> list[Path]:
    """Return the tokenizer's files and the like, which are copied.

    Raises:
        ValueError: one is a link that leads out of the source.
    """
    written = {CONFIG, GENERATION, INDEX, LAYOUT, JOURNAL}
    names = sorted(path.name for path in source.iterdir() if path.suffix in BESIDE and path.is_file())
    return [regular_file(source, name) for name in names if name not in written]


def _finish(target: Path, model: "PreTrainedModel", done: dict[str, FinishedShard]) -> None:
    """Write what stands beside the tensors, and at last `sinq.json`, which makes the folder loadable."""
    files = {name: file for file, shard in done.items() for name in shard.tensors}
    index = {"metadata": {"total_size": sum(shard.nbytes for shard in done.values())}, "weight_map": files}
    changes = [edit_from_json(change) for shard in done.values() for change in shard.edits]
    checksums = {name: number for shard in done.values() for name, number in shard.tensors.items()}
    for change in changes:  # of the model without weights, whose values then say what is stored
        edit(model, change)
    with replacing_all(target, (CONFIG, GENERATION, INDEX, CARD), last=LAYOUT) as paths:
        write_config(model.config, model.dtype, bool(changes), paths[CONFIG])
        write_generation(model, paths[GENERATION])
        paths[INDEX].write_text(json.dumps(index, indent=1))
        paths[CARD].write_text(model_card(model, stored_tensors(model), {}))
        write_layout(changes, checksums, paths[LAYOUT])
