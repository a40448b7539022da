"""The model of a finished run, made again from its row.

A row has the configuration it was run with, and its id is a hash of everything that can change its numbers.
So the configuration is built again, and the new run's id must be the row's: if the code, the model's files or
the options have changed meanwhile, it is not, and nothing is exported under a wrong name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import models
from experiments.config.build import build
from experiments.export.restored import restored
from experiments.models.source import LoadedModel, sparing_clone
from experiments.results.record import Row
from experiments.runs.identity import identity, run_id
from experiments.runs.run import Run
from sinq import Context, using
from sinq.common.progress import Progress

FACTS = {"perplexity": ("perplexity", "value"), "bits per weight": ("size", "bits_per_weight")}
"""Line of the model card → evaluation, and its metric."""


@dataclass(frozen=True)
class Again:
    """A compressed model, and the dense one it was made from."""

    model: Any
    loaded: LoadedModel


def run_of(row: Row) -> Run:
    """Return the run of a row.

    Raises:
        ValueError: the row has no configuration, or the run would now have another id.
    """
    run = build(restored(row))
    found = run_id(identity(run))
    if found != row["run_id"]:
        raise ValueError(
            f"{row['run_id']} cannot be made again: the same configuration is now run {found}, since the"
            " model's files, or a version in the code, are others; run it again and export that"
        )
    return run


def compress_again(run: Run, progress: Progress) -> Again:
    """Return the compressed model of a run; methods read their text, or train, once more."""
    device = run.torch_device
    loaded = models.load(run.model, device)
    calibration = run.calibration.load(loaded, progress) if run.method.needs_calibration else None
    model: Any = sparing_clone(loaded.model)
    with using(run.kernel):
        run.method.compress(model, calibration, Context(run.layers, device, progress))
    return Again(model, loaded)


def facts(row: Row) -> dict[str, Any]:
    """Return what a model card says about a run: method, run, and measured numbers."""
    measured = {
        f"{line} here, as quantized": f"{row['metrics'][evaluation][metric]:.4f}"
        for line, (evaluation, metric) in FACTS.items()
        if metric in row["metrics"].get(evaluation, {})
    }
    return {"method": row["name"], "run": row["run_id"], **measured}


def streamed(row: Row, results: Path) -> Path | None:
    """Return the folder into which a streamed run wrote its model, if it is there."""
    folder = results / "checkpoints" / row["run_id"]
    return folder if (folder / "sinq.json").exists() else None
