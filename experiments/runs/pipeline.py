"""The pipeline: load, compress, evaluate, record. See the module docstrings of its parts for each.

The order is chosen so that mistakes surface first: everything that can be checked is, then the model is compressed (seconds to
minutes, and where a group size that does not fit is refused), then the dense model is evaluated if no run has done so yet, then
the compressed one. The dense baseline is a run like any other, with its own row, found again by every run that shares its model,
text and evaluations.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from baselines.dense import Dense
from experiments import models
from experiments.common.meters import peak_memory
from experiments.data.text import tokenize
from experiments.evaluation import EvaluationContext, Measurement
from experiments.results import record
from experiments.results.record import Row
from experiments.runs.claims import claim
from experiments.runs.cost import Cost
from experiments.runs.failures import explained, failure
from experiments.runs.identity import identity, options, run_id
from experiments.runs.logger import Logger, NoLogger
from experiments.runs.provenance import protocol, provenance
from experiments.runs.run import Run
from sinq import CompressionReport, Context, NotApplicable, chosen, load, stream, using
from sinq.common.named import name_of
from sinq.common.progress import Progress, silent
from sinq.model.experts import choices


@dataclass(frozen=True)
class Execution:
    """Where and how runs are executed: nothing here changes a number."""

    results_dir: Path
    logger: Logger = NoLogger()
    force: bool = False
    """Run again what is already finished."""
    progress: Progress = silent
    wait: bool = True
    """Wait for a run that another process is at work on; otherwise that is a `claims.BusyError`."""


def execute(run: Run, setting: Execution, config: Mapping[str, Any] | None = None) -> Row:
    """The finished row of a run: found, or measured and recorded now.

    Args:
        config: the resolved configuration the run was built from, kept in the row.

    Raises:
        NotApplicable: the options make no sense together; there is no row.
        BusyError: another process is at work on it, and `setting` says not to wait.
        Exception: whatever else stopped the run; its row then has status "failed" and the reason.
    """
    parts = identity(run)
    name = run_id(parts)
    if (found := _finished(setting, name)) and not setting.force:
        return found
    with claim(setting.results_dir, name, setting.wait):
        found = _finished(setting, name)  # another process may have been at work on it just now
        if found and not setting.force:
            return found
        row = {
            "run_id": name,
            "name": label(run),
            "choices": dict(run.choices),
            "identity": parts,
            "options": options(run),
            "config": config,
        }
        row, layers = _attempt(run, row, setting, keep=found is not None)
        record.write(setting.results_dir, row, layers)
    setting.logger.log(row, layers, setting.results_dir)
    return row


def _finished(setting: Execution, name: str) -> Row | None:
    found = record.find(setting.results_dir, name)
    return found if found and found["status"] == record.FINISHED else None


def _attempt(run: Run, row: Row, setting: Execution, keep: bool) -> tuple[Row, pd.DataFrame]:
    """Measure; on failure record why, unless a finished row is to be kept: a forced run that fails does not cost the row there is."""
    cost = Cost(run.torch_device)
    try:
        with using(run.kernel):
            return _measure(run, row, setting, cost)
    except NotApplicable:
        raise
    except Exception as error:
        reported = explained(error, run, cost)
        failed = {
            "status": record.FAILED,
            **failure(reported, cost),
            "metrics": {},
            "provenance": provenance(run.torch_device),
        }
        if not keep:
            record.write(setting.results_dir, row | failed)
        if reported is error:
            raise
        raise reported from error


def label(run: Run) -> str:
    """A short name for people: the method, and its format where it has one."""
    method = run.choices.get("method", name_of(run.method))
    stored = getattr(run.method, "format", None)
    return method if stored is None else f"{method} {stored.label}"


def _measure(run: Run, row: Row, setting: Execution, cost: Cost) -> tuple[Row, pd.DataFrame]:
    device = run.torch_device
    loaded = models.load(run.model, device)
    passage = run.text.evaluation()
    tokens = tokenize(passage, loaded.tokenizer, loaded.tokenizer_hash)
    subject = EvaluationContext(loaded.model, loaded, tokens, CompressionReport(), device, setting.progress)
    for evaluation in run.evaluation.values():
        evaluation.check(subject)
    compression: dict[str, Any] = {}
    dense = None
    if run.method.changes_model:
        with cost.part():
            subject = (
                _streamed(run, subject, setting, row["run_id"])
                if run.stream
                else _compress(run, subject, setting)
            )
        compression = {"compression": _compression_metrics(subject)}
        dense = _dense(run, setting, row["config"])
    measured = {}
    for key, evaluation in run.evaluation.items():
        with cost.part():
            measured[key] = evaluation.measure(subject)
    metrics = compression | {key: measurement.metrics for key, measurement in measured.items()}
    if dense is not None:
        for key, evaluation in run.evaluation.items():
            of_dense = Measurement(dense["metrics"][key], dense["samples"].get(key, {}))
            metrics[key] |= evaluation.against_dense(measured[key], of_dense)
    layers = pd.DataFrame([part.as_row() for part in subject.report.parts])
    finished = {
        "status": record.FINISHED,
        "dense_run_id": dense["run_id"] if dense else None,
        "metrics": metrics,
        "samples": {key: measurement.samples for key, measurement in measured.items() if measurement.samples},
        "cost": cost.as_row(),
        "protocol": protocol(loaded, passage, tokens),
        "provenance": provenance(device),
    }
    return row | finished, layers


def _dense(run: Run, setting: Execution, config: Mapping[str, Any] | None) -> Row:
    """The row of the same run without compression."""
    as_config = None if config is None else {**config, "method": {"schema": "Dense"}}
    return execute(
        replace(run, method=Dense(), choices={**run.choices, "method": "none"}),
        replace(setting, force=False, wait=True),
        as_config,
    )


def _compress(run: Run, dense: EvaluationContext, setting: Execution) -> EvaluationContext:
    model: Any = models.sparing_clone(dense.loaded.model)
    calibration = run.calibration.load(dense.loaded) if run.method.needs_calibration else None
    with peak_memory(dense.device) as peak:
        report = run.method.compress(model, calibration, Context(run.layers, dense.device, setting.progress))
    return replace(dense, model=model.to(dense.device), report=report, quantize_peak=peak)


def _streamed(run: Run, dense: EvaluationContext, setting: Execution, name: str) -> EvaluationContext:
    """Compressed from file to file. The files stay, so a run that failed later, or was killed here, goes on from them."""
    folder = setting.results_dir / "checkpoints" / name
    if setting.force and folder.exists():
        shutil.rmtree(folder)
    with peak_memory(dense.device) as peak:
        report = stream(
            run.model.folder(), folder, run.method, Context(run.layers, dense.device, setting.progress)
        )
    model: Any = load(folder, dense.device, dense.loaded.model.dtype)
    return replace(dense, model=model, report=report, quantize_peak=peak)


def _compression_metrics(subject: EvaluationContext) -> dict[str, Any]:
    report = subject.report
    return {
        "kernel": chosen(subject.device).value,
        "kernel_refusals": dict(
            Counter(reason for choice in choices(subject.model) for reason in choice.refusals)
        ),
        "layers": len(report.parts),
        "decisions": report.decisions,
        "skipped": list(report.skipped),
        "seconds_quantize": report.seconds_quantize,
        "seconds_statistics": report.seconds_statistics,
        "seconds_compile": report.seconds_compile,
        "relative_error_mean": report.relative_error_mean,
    }
