"""The files that `stream` writes: which tensors each has, and making one of them.

A decoder block becomes one file, and so does every tensor outside the blocks. A `Job` is all that determines
them, in plain values that another process or machine can be sent. `prepare` reads the headers of the source
and plans; `Work.make` then makes any one file, in any order. So files can be made here, one after another, or
by workers (`workers.py`) that prepare the same job themselves.
"""

import pickle
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sinq.checkpoint.folder import write_tensors
from sinq.checkpoint.huggingface import Source, TensorReader, shape_of
from sinq.checkpoint.journal import JOURNAL, FinishedShard
from sinq.checkpoint.weight_files import weight_files
from sinq.common.atomic_files import replacing
from sinq.common.errors import USE_COMPRESS, NotApplicable
from sinq.kernels import Kernel, using
from sinq.methods.base import LayerMethod, Method
from sinq.methods.block_loop import quantize_matrices
from sinq.methods.plan import LayerPlan, Plan, require_usable
from sinq.model.context import Context
from sinq.model.edits import edit_as_json
from sinq.model.targets import Layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = re.compile(r".*?\.\d+(?=\.)")
"""Pattern of the decoder block in the name of a tensor: `model.layers.3`."""


@dataclass(frozen=True)
class Shard:
    """A file to be written."""

    file: str
    names: tuple[tuple[str, str], ...]
    """(name in the model, name in the source) of each tensor."""
    plans: dict[str, LayerPlan]
    """Plans of the tensors that are compressed, by name in the model."""


@dataclass(frozen=True)
class Job:
    """Folders, method and circumstances of a streaming, as plain values."""

    source: Path
    target: Path
    method: Method
    layers: Layers
    device: torch.device
    kernel: Kernel


def files_of(source: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change (ns) of a checkpoint's files: reading them all takes too long.

    Raises:
        FileNotFoundError: a file is missing.
    """
    found = ((path.name, path.stat()) for path in (source / "config.json", *weight_files(source)))
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


@dataclass(frozen=True)
class Work:
    """A job whose source was read as far as headers go, and whose layers are planned."""

    job: Job
    model: "PreTrainedModel"
    """Without weights."""
    plan: Plan
    weights: Source
    shards: Mapping[str, Shard]
    """By file, in the order of the model."""

    def make(self, file: str) -> FinishedShard:
        """Write one file, and return its content. Its tensors live only as long as this call."""
        with self.weights.reading() as read, torch.no_grad():
            return _make(self.shards[file], read, self.job.target, self.job.device)


def prepare(job: Job) -> Work:
    """Read headers, and decide how each layer is compressed.

    Raises:
        NotApplicable: the method needs more than one matrix at a time.
        ValueError: options and checkpoint do not fit.
        FileNotFoundError: the source lacks a file.
    """
    model = shape_of(job.source)
    plan = _layer_method(job.method).plan(model, None, Context(job.layers, job.device))
    if plan.together:
        layers = " and ".join(plan.together[0][:2])
        raise NotApplicable(f"stream quantizes one layer at a time, and {layers} go together; {USE_COMPRESS}")
    weights = Source(job.source, model)
    return Work(job, model, plan, weights, _shards(weights.names(), plan.steps))


def sent(job: Job) -> bytes:
    """Return a job as other processes take it, with the files of its source where the work begins."""
    return pickle.dumps((job, files_of(job.source)))


def make_elsewhere(job: bytes, file: str) -> FinishedShard:
    """Make one file in a process that knows the job alone; it prepares for the first one.

    Args:
        job: see `sent`.

    Raises:
        ValueError: this machine sees other folders than that on which the work began.
    """
    work = _prepared(job)
    with using(work.job.kernel):
        return work.make(file)


@lru_cache(maxsize=1)
def _prepared(pickled: bytes) -> Work:
    job, files = pickle.loads(pickled)  # of the process that started this one
    if not (job.target / JOURNAL).exists():
        raise ValueError(
            f"{platform.node()} does not see {job.target} with its {JOURNAL}: all machines must share source"
            " and target; choose folders of a shared file system"
        )
    if files_of(job.source) != files:
        raise ValueError(
            f"{job.source} has other files on {platform.node()} than where the work began; choose a folder of"
            " a shared file system"
        )
    return prepare(job)


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


def _shards(names: dict[str, str], plans: Sequence[LayerPlan]) -> dict[str, Shard]:
    """Return the files to write, in the order of the model.

    Args:
        names: name in the source of every tensor by its name in the model.
    """
    by_name = {layer.target.tensor_name: layer for layer in plans}
    groups = [tuple(group) for _, group in groupby(names.items(), key=lambda pair: block_of(pair[0]))]
    files = [f"model-{k:05d}-of-{len(groups):05d}.safetensors" for k in range(1, len(groups) + 1)]
    return {
        file: Shard(file, group, {name: by_name[name] for name, _ in group if name in by_name})
        for file, group in zip(files, groups, strict=True)
    }


def block_of(name: str) -> str:
    """Return the decoder block of a tensor, or the name of one outside the blocks."""
    match = BLOCK.match(name)
    return match[0] if match else name


def _make(shard: Shard, read: TensorReader, target: Path, device: torch.device) -> FinishedShard:
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


def _quantize(layer: LayerPlan, name: str, matrix: torch.Tensor, device: torch.device) -> Any:
    """Return the compressed weight and the report of a matrix (out, in)."""
    require_usable(name, matrix)
    (quantized,) = quantize_matrices([(layer, name, matrix)], None, device)
    return quantized
