"""The pipeline: load, compress, evaluate, record. Each step is described in its module.

The order makes mistakes surface early. First everything that can be checked is checked. Then the model is
compressed (seconds to minutes; a group size that does not fit is refused here), then the dense model is
evaluated if no run has done so yet, then the compressed one. The dense baseline is a run like any other, with
its own row, found again by every run that shares its model, text and evaluations.
"""

import logging
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
from experiments.common.tensor_folder import training_states
from experiments.data.text import tokenize
from experiments.evaluation import EvaluationContext, Measurement
from experiments.models.refusals import UnfitModelError
from experiments.results import record
from experiments.results.record import Row
from experiments.runs import finite, kept
from experiments.runs.claims import claim
from experiments.runs.cost import Cost
from experiments.runs.failures import explained, failure
from experiments.runs.identity import identity, options, run_id
from experiments.runs.logger import Logger, NoLogger
from experiments.runs.portable import portable
from experiments.runs.provenance import protocol, provenance
from experiments.runs.run import Run
from sinq import Calibration, CompressionReport, Context, NotApplicable, chosen, load, stream, using
from sinq.checkpoint.configuration import QUANT_METHOD
from sinq.checkpoint.foreign.formats import stated_quantization
from sinq.checkpoint.journal import JournalError
from sinq.common.named import name_of
from sinq.common.progress import Progress, silent
from sinq.model.experts import choices

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """Options of carrying runs out; none of them changes a number."""

    results_dir: Path
    logger: Logger = NoLogger()
    force: bool = False
    """Repeat finished runs."""
    progress: Progress = silent
    save: bool = False
    """Keep the model in `<results_dir>/checkpoints/<run_id>`; a finished run without one is repeated."""
    wait: bool = True
    """Wait for a run that another process is at work on; otherwise raise `claims.BusyError`."""
    stream_workers: int | str = 1
    """Number of processes that stream a run's checkpoint, or "ray" (`sinq/checkpoint/stream.py`)."""


class IncompleteError(Exception):
    """An evaluation failed with `error`; `measured` are the entries of a row that the others give."""

    def __init__(self, error: Exception, measured: Mapping[str, Any]) -> None:
        super().__init__(str(error))
        self.error, self.measured = error, measured


def execute(run: Run, setting: Execution, config: Mapping[str, Any] | None = None) -> Row:
    """Return the finished row of a run: found, or measured and recorded now.

    Args:
        run: the options of the run.
        setting: the results folder, and the options of carrying the run out.
        config: the configuration the run was built from, kept in the row without absolute paths.

    Raises:
        NotApplicable: the options make no sense together; there is no row.
        BusyError: another process is at work on the run, and `setting.wait` is false.
        Exception: any other error that stopped the run; its row then has status "failed" and the reason.
    """
    parts = identity(run)
    name = run_id(parts)
    if (found := _finished(setting, name)) and not _repeats(setting, name):
        return found
    with claim(setting.results_dir, name, setting.wait):
        found = _finished(setting, name)  # another process may have finished it meanwhile
        if found and not _repeats(setting, name):
            return found
        row = {
            "run_id": name,
            "name": label(run),
            "choices": dict(run.choices),
            "identity": parts,
            "options": options(run),
            "config": portable(config),
        }
        row, layers = _attempt(run, row, setting, keep=found is not None)
        record.write(setting.results_dir, row, layers)
        training_states(name).clear()
    setting.logger.log(row, layers, setting.results_dir)
    return row


def _finished(setting: Execution, name: str) -> Row | None:
    found = record.find(setting.results_dir, name)
    return found if found and found["status"] == record.FINISHED else None


def _repeats(setting: Execution, name: str) -> bool:
    """Return True if a run is carried out though it is finished."""
    return setting.force or (setting.save and kept.is_missing(setting.results_dir, name))


def _attempt(run: Run, row: Row, setting: Execution, keep: bool) -> tuple[Row, pd.DataFrame]:
    """Measure a run; if it fails, record the reason.

    With `keep` a failure is not recorded: a forced run that fails does not replace its finished row.
    """
    cost = Cost(run.torch_device)
    try:
        with using(run.kernel):
            return _measure(run, row, setting, cost)
    except NotApplicable:
        raise
    except Exception as error:
        measured = error.measured if isinstance(error, IncompleteError) else {}
        cause = error.error if isinstance(error, IncompleteError) else error
        reported = explained(cause, run, cost)
        failed = {
            "metrics": {},
            "provenance": provenance(run.torch_device),
            **measured,
            "status": record.FAILED,
            **failure(reported, cost),
        }
        if not keep:
            record.write(setting.results_dir, row | failed)
        if reported is error:
            raise
        raise reported from (cause.__cause__ if reported is cause else cause)


def label(run: Run) -> str:
    """Return a short name of a run for people: the method, and its format where it has one."""
    method = run.choices.get("method", name_of(run.method))
    stored = getattr(run.method, "format", None)
    return method if stored is None else f"{method} {stored.label}"


def _measure(run: Run, row: Row, setting: Execution, cost: Cost) -> tuple[Row, pd.DataFrame]:
    """Carry a run out; return its finished row and the table of its layers."""
    device = run.torch_device
    _refuse_quantized(run)
    loaded = models.load(run.model, device)
    passage = run.text.evaluation()
    tokens = tokenize(passage, loaded.tokenizer, loaded.tokenizer_hash)
    report = loaded.foreign.report if loaded.foreign else CompressionReport()
    context = EvaluationContext(loaded.model, loaded, tokens, report, device, setting.progress)
    loaded.refuse_unknown(tokens)
    for evaluation in run.evaluation.values():
        evaluation.require_fitting(context)
        evaluation.check(context)
    calibration = run.calibration.load(loaded, setting.progress) if run.method.needs_calibration else None
    compression: dict[str, Any] = {}
    dense_row = None
    if run.method.changes_model:
        with cost.part():
            if run.stream:
                context = _stream(run, context, setting, row["run_id"])
            else:
                context = _compress(run, context, setting, calibration, row["run_id"])
    folder = kept.model_folder(setting.results_dir, row["run_id"])
    if setting.save and not run.stream:
        kept.keep(context, folder)
    if run.method.changes_model:
        dense_row = _measure_dense(run, setting, row["config"])
    if loaded.foreign is not None or run.method.changes_model:
        compression = {"compression": _compression_metrics(context) | _training_metrics(context)}
    measured: dict[str, Measurement] = {}
    failed: list[Exception] = []
    for key, evaluation in run.evaluation.items():
        try:
            with cost.part():
                found = evaluation.measure(context)
            finite.check(f"evaluation.{key}", found.metrics, context)
            measured[key] = found
        except Exception as error:  # noqa: BLE001 - raised below, when the others are measured
            error.add_note(f"in evaluation.{key}")
            failed.append(error)
    layers = pd.DataFrame([part.as_row() for part in context.report.parts])
    finished = {
        "status": record.FINISHED,
        "name": loaded.foreign.report.method if loaded.foreign else row["name"],
        "dense_run_id": dense_row["run_id"] if dense_row else None,
        "metrics": compression | _metrics(run, measured, dense_row),
        "samples": _samples(measured, context),
        "cost": cost.as_row(),
        "protocol": protocol(loaded, passage, tokens, calibration),
        "provenance": provenance(device),
    }
    if failed:
        raise IncompleteError(failed[0], finished)
    if setting.save or run.stream:
        kept.write_card(context, folder, row | finished)
    return row | finished, layers


def _refuse_quantized(run: Run) -> None:
    """Raise `UnfitModelError` for a model that is compressed already: by this project, or before a method."""
    if not run.model.is_quantized:
        return
    folder = run.model.folder()
    kind = (stated_quantization(folder) or {}).get("quant_method")
    if kind == QUANT_METHOD:
        raise UnfitModelError(
            f"model {folder} was written by sinq.save; its row is that of the run that made it, and"
            " experiments.perplexity measures what sinq.load returns"
        )
    if run.method.changes_model:
        raise UnfitModelError(
            f"model {folder} is quantized already ({kind}); its dense model is what can be compressed,"
            " and method=none measures it as it is"
        )


def _metrics(run: Run, measured: Mapping[str, Measurement], dense_row: Row | None) -> dict[str, Any]:
    """Return the metrics of every evaluation, with those against the dense row if there is one."""
    metrics = {key: measurement.metrics for key, measurement in measured.items()}
    if dense_row is not None:
        for key, evaluation in run.evaluation.items():
            if key not in measured:
                continue
            dense = Measurement(dense_row["metrics"][key], dense_row["samples"].get(key, {}))
            metrics[key] |= evaluation.against_dense(measured[key], dense)
    return metrics


def _measure_dense(run: Run, setting: Execution, config: Mapping[str, Any] | None) -> Row:
    """Return the row of the same run without compression, found or measured."""
    as_config = None if config is None else {**config, "method": {"schema": "Dense"}}
    return execute(
        replace(run, method=Dense(), choices={**run.choices, "method": "none"}),
        replace(setting, force=False, save=False, wait=True),
        as_config,
    )


def _compress(
    run: Run,
    context: EvaluationContext,
    setting: Execution,
    calibration: Calibration | None,
    name: str,
) -> EvaluationContext:
    """Compress a copy of the dense model in memory; what trains goes on where a killed run was."""
    model: Any = models.sparing_clone(context.loaded.model)
    device, states = context.device, training_states(name)
    if setting.force:
        states.clear()
    with peak_memory(device) as peak:
        carried_out = Context(run.layers, device, setting.progress, states)
        report = run.method.compress(model, calibration, carried_out)
    return replace(context, model=model.to(device), report=report, quantize_peak=peak)


def _stream(run: Run, context: EvaluationContext, setting: Execution, name: str) -> EvaluationContext:
    """Compress the model file by file, and load the result.

    The files stay, so a run that fails later, or is killed here, resumes from them.
    """
    folder = kept.model_folder(setting.results_dir, name)
    if setting.force and folder.exists():
        shutil.rmtree(folder)
    device = context.device
    with peak_memory(device) as peak:
        report = _resumed(run, folder, Context(run.layers, device, setting.progress), setting.stream_workers)
    model: Any = load(folder, device, context.loaded.model.dtype)
    return replace(context, model=model, report=report, quantize_peak=peak)


def _resumed(run: Run, folder: Path, context: Context, workers: int | str) -> CompressionReport:
    """Quantize file by file into a folder of ours; what cannot be continued there is made again."""
    try:
        return stream(run.model.folder(), folder, run.method, context, workers=workers)
    except JournalError as error:
        log.warning("%s; it is made again", error)
        shutil.rmtree(folder)
        return stream(run.model.folder(), folder, run.method, context, workers=workers)


def _compression_metrics(context: EvaluationContext) -> dict[str, Any]:
    report = context.report
    refusals = Counter(reason for choice in choices(context.model) for reason in choice.refusals)
    return {
        "kernel": chosen(context.device).value,
        "kernel_refusals": dict(refusals),
        "layers": len(report.parts),
        "decisions": report.decisions,
        "skipped": list(report.skipped),
        "left_dense": dict(report.left_dense),
        "seconds_quantize": report.seconds_quantize,
        "seconds_statistics": report.seconds_statistics,
        "seconds_compile": report.seconds_compile,
        "relative_error_mean": report.relative_error_mean,
    } | ({"stated": dict(context.loaded.foreign.stated)} if context.loaded.foreign else {})


def _training_metrics(context: EvaluationContext) -> dict[str, Any]:
    """Return the cost of training, if the method trained: tokens, seconds, and memory besides the model's."""
    training, peak = context.report.training, context.quantize_peak
    if training is None or peak is None:
        return {}
    return {"training": training.as_row() | {"peak_increase_bytes": peak.increase_bytes}}


def _samples(measured: Mapping[str, Measurement], context: EvaluationContext) -> dict[str, Any]:
    """Return the values behind metrics and report, and the losses and measures of each step of a training."""
    samples = {key: measurement.samples for key, measurement in measured.items() if measurement.samples}
    samples |= context.report.samples
    training = context.report.training
    if training is None:
        return samples
    return samples | {"training": {"loss": training.losses, **training.measures}}
