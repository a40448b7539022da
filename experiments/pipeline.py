"""The pipeline: load, compress, evaluate, record. See the module docstrings of its parts for each.

The order is chosen so that mistakes surface first: everything that can be checked is, then the model is compressed (seconds to
minutes, and where a group size that does not fit is refused), then the dense model is evaluated if no run has done so yet, then
the compressed one. The dense baseline is a run like any other, with its own row, found again by every run that shares its model,
text and evaluations.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from baselines.dense import Dense
from experiments import models, record
from experiments.evaluation import Measurement, Subject
from experiments.identity import identity, run_id
from experiments.loggers import Logger, NoLogger
from experiments.meters import peak_memory
from experiments.provenance import protocol, provenance
from experiments.record import Row
from experiments.run import Run
from experiments.text import tokenize
from sinq import CompressionReport, NotApplicable, chosen, load, stream, using
from sinq.progress import Progress, silent


@dataclass(frozen=True)
class Setting:
    """Where and how runs are executed: nothing here changes a number."""

    results_dir: Path
    logger: Logger = NoLogger()
    force: bool = False
    """Run again what is already finished."""
    progress: Progress = silent


def execute(run: Run, setting: Setting, config: Mapping[str, Any] | None = None) -> Row:
    """The finished row of a run: found, or measured and recorded now.

    Args:
        config: the resolved configuration the run was built from, kept in the row.

    Raises:
        NotApplicable: the options make no sense together; there is no row.
        Exception: whatever else stopped the run; its row then has status "failed" and the reason.
    """
    parts = identity(run)
    name = run_id(parts)
    with record.claim(setting.results_dir, name):
        found = record.find(setting.results_dir, name)
        finished = found if found and found["status"] == record.FINISHED else None
        if finished and not setting.force:
            return finished
        row = {"run_id": name, "name": label(run), "choices": dict(run.choices), "identity": parts, "config": config}
        try:
            with using(run.kernel):
                row, layers = _measure(run, row, setting)
        except NotApplicable:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            failed = {"status": record.FAILED, "reason": reason, "metrics": {}, "provenance": provenance(run.torch_device)}
            if not finished:  # a forced run that fails does not cost the row there is
                record.write(setting.results_dir, row | failed)
            raise
        record.write(setting.results_dir, row, layers)
    setting.logger.log(row, layers, setting.results_dir)
    return row


def label(run: Run) -> str:
    """A short name for people: method, and bits and group size where it has them."""
    method = run.choices.get("method", type(run.method).__name__.lower())
    grid = getattr(run.method, "grid", None)
    return method if grid is None else f"{method} {grid.bits}-bit g{grid.group_size}"


def _measure(run: Run, row: Row, setting: Setting) -> tuple[Row, pd.DataFrame]:
    device = run.torch_device
    loaded = models.load(run.model, device)
    passage = run.text.evaluation()
    tokens = tokenize(passage, loaded.tokenizer, loaded.tokenizer_hash)
    subject = Subject(loaded.model, loaded, tokens, CompressionReport(), device, setting.progress)
    for evaluation in run.evaluation.values():
        evaluation.check(subject)
    compression: dict[str, Any] = {}
    dense = None
    if not isinstance(run.method, Dense):
        subject = _streamed(run, subject, setting, row["run_id"]) if run.stream else _compress(run, subject, setting)
        compression = {"compression": _compression_metrics(subject.report) | {"kernel": chosen(subject.device).value}}
        dense = _dense(run, setting, row["config"])
    measured = {key: evaluation.measure(subject) for key, evaluation in run.evaluation.items()}
    metrics = compression | {key: measurement.metrics for key, measurement in measured.items()}
    if dense is not None:
        for key, evaluation in run.evaluation.items():
            of_dense = Measurement(dense["metrics"][key], dense["samples"].get(key, {}))
            metrics[key] |= evaluation.against_dense(measured[key], of_dense)
    layers = pd.json_normalize([asdict(layer) for layer in subject.report.layers])
    finished = {
        "status": record.FINISHED,
        "dense_run_id": dense["run_id"] if dense else None,
        "metrics": metrics,
        "samples": {key: measurement.samples for key, measurement in measured.items() if measurement.samples},
        "protocol": protocol(loaded, passage, tokens),
        "provenance": provenance(device),
    }
    return row | finished, layers


def _dense(run: Run, setting: Setting, config: Mapping[str, Any] | None) -> Row:
    """The row of the same run without compression."""
    as_config = None if config is None else {**config, "method": {"_target_": "baselines.dense.Dense"}}
    return execute(replace(run, method=Dense(), choices={**run.choices, "method": "none"}), replace(setting, force=False), as_config)


def _compress(run: Run, dense: Subject, setting: Setting) -> Subject:
    model: Any = models.sparing_clone(dense.loaded.model)
    calibration = run.calibration.load(dense.loaded) if run.method.needs_calibration else None
    with peak_memory(dense.device) as peak:
        report = run.method.compress(model, calibration, layers=run.layers, device=dense.device, progress=setting.progress)
    return replace(dense, model=model.to(dense.device), report=report, quantize_peak=peak)


def _streamed(run: Run, dense: Subject, setting: Setting, name: str) -> Subject:
    """Compressed from file to file. The files stay, so a run that failed later, or was killed here, goes on from them."""
    folder = setting.results_dir / "checkpoints" / name
    if setting.force and folder.exists():
        shutil.rmtree(folder)
    with peak_memory(dense.device) as peak:
        report = stream(run.model.folder(), folder, run.method, layers=run.layers, device=dense.device, progress=setting.progress)
    model: Any = load(folder, dense.device, dense.loaded.model.dtype)
    return replace(dense, model=model, report=report, quantize_peak=peak)


def _compression_metrics(report: CompressionReport) -> dict[str, Any]:
    return {
        "layers": len(report.layers),
        "decisions": report.decisions,
        "skipped": list(report.skipped),
        "seconds_quantize": report.seconds_quantize,
        "seconds_statistics": report.seconds_statistics,
        "seconds_compile": report.seconds_compile,
        "relative_error_mean": fmean(layer.relative_error for layer in report.layers),
    }
