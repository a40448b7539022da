"""Quantizing a checkpoint that does not fit in memory: file to file, one decoder block at a time.

    source/  config.json, model*.safetensors ─▶ map ─▶ quantize each matrix ─▶ target/  (see `load`)

The architecture is built without weights (`huggingface.py`), so everything that `methods/plan.py` refuses is
refused at once. Only weights that cannot be computed with (NaN, 1e30) are found later, when a matrix is
read. A decoder block becomes one file, and so does every tensor outside the blocks. Tensors that are not
compressed are copied from the mapped source to the target, in their own dtype.

Memory: the compressed values of one block, and the working memory of quantizing one matrix (some float32
copies of it). Fused experts that the checkpoint stores one by one are assembled first, in their own dtype:
one parameter of one layer. Embeddings take no memory. Several workers (`workers.py`) make files at once, each
in the memory of one; which files there are and how one is made is in `shards.py`.

A file is renamed to its final name when it is complete and on disk, and the journal (`journal.py`) then lists
it. Restarted after a kill, the work continues with the first file that is missing or damaged; of a finished
folder only the small files are written again. Matrices are quantized as they are stored: the result is, bit
for bit, that of `compress` on a model loaded in the checkpoint's dtype, or in float32.

Calibrated methods need the outputs of a running model, and methods that rewrite a model need several layers
at once: both are refused.
"""

import json
import shutil
from collections.abc import Generator
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sinq.checkpoint.card import CARD, model_card
from sinq.checkpoint.configuration import CONFIG, GENERATION, write_config, write_generation
from sinq.checkpoint.folder import replacing_all, stored_tensors
from sinq.checkpoint.journal import JOURNAL, FinishedShard, clear, resume, write
from sinq.checkpoint.layout import LAYOUT, checksum, write_layout
from sinq.checkpoint.shards import Job, Work, files_of, make_elsewhere, prepare, sent
from sinq.checkpoint.weight_files import INDEX, tensors_of
from sinq.checkpoint.workers import in_processes, on_ray
from sinq.common.atomic_files import replacing
from sinq.common.inside import regular_file
from sinq.common.named import described
from sinq.common.options import shown, whole
from sinq.kernels import chosen
from sinq.methods.base import Method
from sinq.methods.report import CompressionReport, PartReport
from sinq.model.context import Context
from sinq.model.edits import edit, edit_from_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Finished = tuple[str, FinishedShard]
RAY, COUNT = "ray", whole(1, 1024)
BESIDE = (".json", ".model", ".txt", ".jinja")
"""Endings of the small files beside the weights: tokenizer, generation settings."""


def stream(
    source: str | Path,
    target: str | Path,
    method: Method,
    context: Context = Context(),
    *,
    workers: int | str = 1,
) -> CompressionReport:
    """Quantize a checkpoint from one folder into another, in the memory of about one layer.

    After a kill, the same call continues the work, with any number of workers.

    Args:
        source: folder of a Hugging Face checkpoint in safetensors, one file or several.
        target: folder for the compressed model, which `load` reads; empty, missing, or left by the same call.
        method: a calibration-free `LayerMethod`.
        context: as for `Method.compress`; matrices are quantized on its device, by default the CPU.
        workers: number of processes that make files at once, each in the memory of about one layer; or "ray"
            for tasks of a Ray cluster whose machines share both folders. With 1, this process does it.

    Raises:
        NotApplicable: the method needs more than one matrix at a time.
        JournalError: (a ValueError) the target holds other work, or its journal is damaged.
        ValueError: before any work, if options and checkpoint do not fit, naming layers and tensors; later,
            naming the layer, if a weight cannot be computed with. Finished files then stay.
        FileNotFoundError: the source lacks a file.
        ChildProcessError: several workers were ended at one file.
    """
    require_workers(workers)
    work, small = prepare(_job(source, target, method, context)), small_files(Path(source))
    folder, identity = work.job.target, _identity(work.job)
    done = {
        name: shard for name, shard in resume(folder, identity).items() if _is_whole(folder / name, shard)
    }
    left = [file for file in work.shards if file not in done]
    with closing(_made(work, left, workers)) as made:
        finished = chain(done.copy().items(), made)
        for file, shard in context.progress(finished, "quantizing files", len(work.shards)):
            if file not in done:
                done[file] = shard
                write(folder, identity, done)
    clear(folder)  # of what killed workers left
    ordered = {file: done[file] for file in work.shards}
    for path in small:
        with replacing(folder / path.name) as scratch:
            shutil.copyfile(path, scratch)
    _finish(folder, work.model, ordered)
    reports = tuple(PartReport.from_json(layer) for shard in ordered.values() for layer in shard.layers)
    seconds, plan = sum(report.seconds for report in reports), work.plan
    return CompressionReport(reports, plan.skipped, plan.left_dense, 0.0, seconds, method=method.label)


def require_workers(workers: object, name: str = "workers") -> None:
    """Raise `ValueError`, naming the option, for what is neither a number of workers nor "ray"."""
    if workers != RAY and not COUNT.holds(workers):
        raise ValueError(f"{name}={shown(workers)} is not possible; it must be {COUNT}, or {RAY}")


def _job(source: str | Path, target: str | Path, method: Method, context: Context) -> Job:
    device = torch.device(context.device or "cpu")
    source, target = (Path(folder).absolute() for folder in (source, target))  # workers may be elsewhere
    return Job(source, target, method, context.layers, device, chosen(device))


def _made(work: Work, files: list[str], workers: int | str) -> Generator[Finished, None, None]:
    """Yield files and their content, each when it is finished."""
    if workers == 1 or not files:
        yield from ((file, work.make(file)) for file in files)
        return
    make = partial(make_elsewhere, sent(work.job))
    if workers == RAY:
        yield from on_ray(make, files, gpus=int(work.job.device.type == "cuda"))
    else:
        yield from in_processes(make, files, int(workers))


def _identity(job: Job) -> dict[str, Any]:
    """Return the values that determine the written files, as plain JSON."""
    return {
        "method": described(job.method),
        "layers": described(job.layers),
        "kernel": f"{job.kernel.value} on {job.device.type}",
        "source": [list(file) for file in files_of(job.source)],
    }


def _is_whole(path: Path, shard: FinishedShard) -> bool:
    """Return whether a file has the tensors that the journal says."""
    try:
        return {name: checksum(tensor) for name, tensor in tensors_of(path).items()} == shard.tensors
    except ValueError:
        return False


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
