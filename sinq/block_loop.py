"""The one loop that turns a model's layers into compressed ones, block by block.

    inputs of block k ─▶ statistics ─▶ quantize each layer of the block ─▶ outputs of the *compressed* block = inputs of block k+1

Calibration-free methods skip everything but the middle. Only one block (or, without calibration, one matrix) is on `device` at a time,
so a model larger than the accelerator is no special case; results go back to where the model lives.

Layers that share their inputs (`collect.py` finds them) share one statistic and are handed to the method together. Layers outside the
blocks come last. Where a method tunes blocks (`tuning.py`), that is done when the last layer of one is compressed, and what is reported
of its layers is what they are then. `calibration.py` says what `sequential` means. Fused experts see tokens the router chose for them,
which no hook shows; methods that need statistics of inputs refuse them. Gradients of the loss by weights are taken before the loop, of
the whole model.

Everything that can be refused is refused by `plan.py`, before the first matrix is touched.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sinq.calibration import Calibration
from sinq.clock import timed
from sinq.collect import Group, collected, find_groups
from sinq.kernels import Kernel, chosen
from sinq.layers import Layers
from sinq.linear import CompressedLinear
from sinq.plan import Quantizer, Step, plan
from sinq.progress import Progress
from sinq.report import CompressionReport, LayerReport, describe
from sinq.statistics import Statistic
from sinq.tensor import CompressedWeight
from sinq.tuning import Finished

PROBE_TOKENS = 8
WARM_UP_ROWS = 16


def compress_layers(
    model: nn.Module,
    method: Quantizer,
    calibration: Calibration | None,
    *,
    layers: Layers,
    device: torch.device | str | None,
    progress: Progress,
    bits: Mapping[str, int] | None = None,
) -> CompressionReport:
    """`LayerMethod.compress`: see there for arguments.

    Args:
        bits: of the grid, for targets that are to have others than the method's own.
    """
    steps, skipped = plan(model, method, calibration, layers, bits or {})
    place = torch.device(device) if device is not None else next(model.parameters()).device
    seconds = 0.0
    with torch.no_grad():
        if method.statistic is None or calibration is None:
            warming = _warm_up(steps[:1], None, place)
            shown = progress(steps, "quantizing layers", len(steps))
            reports = [entry for step in shown for entry in _compress(model, [step], None, place)]
        else:
            reports, seconds, warming = _calibrated(model, steps, calibration, place, progress)
    return CompressionReport(tuple(reports), skipped, seconds, sum(report.seconds for report in reports), warming)


def _warm_up(group: Group, statistic: Statistic | None, place: torch.device) -> float:
    """Quantize a few rows, for nothing, so that compiling a kernel (or finding it on disk) is no layer's time: seconds it took."""
    if chosen(place) is Kernel.reference:
        return 0.0
    matrix, method = next(iter(group[0].target.matrices().values())), group[0].method.warming_up()
    rows = min(len(matrix), method.format.tile((WARM_UP_ROWS, matrix.shape[1]))[0])
    with timed(place) as clock:
        method.quantize_together([matrix[:rows].to(place, torch.float32).contiguous()], statistic)
    return clock.seconds


def _compress(model: nn.Module, group: Group, statistic: Statistic | None, place: torch.device) -> list[LayerReport]:
    """Quantize the matrices of targets that share their inputs, and put the results into the model."""
    reports = []
    for alike in _by_format(group):
        named = [(step, name, matrix) for step in alike for name, matrix in step.target.matrices().items()]
        made: dict[str, list[CompressedWeight]] = {}
        for (step, _, _), (value, report) in zip(named, quantize_matrices(named, statistic, place), strict=True):
            made.setdefault(step.target.name, []).append(value)
            reports.append(report)
        for step in alike:
            step.target.replace(model, made[step.target.name])
    return reports


def quantize_matrices(
    named: Sequence[tuple[Step, str, Tensor]], statistic: Statistic | None, place: torch.device
) -> list[tuple[CompressedWeight, LayerReport]]:
    """Quantize matrices that share their inputs, on a device; the values lie where the matrices did.

    Args:
        named: of each matrix the step it belongs to, its name, and itself, (out, in) in any floating dtype. All steps have one format.
    """
    weights = [matrix.to(place, torch.float32).contiguous() for _, _, matrix in named]
    unseen = {"inputs_never_seen": 1.0} if statistic is not None and statistic.tokens == 0 else {}
    with timed(place) as clock:
        compressed = named[0][0].method.quantize_together(weights, statistic)
    share = clock.seconds / sum(weight.numel() for weight in weights)
    made = []
    for (step, name, matrix), weight, value in zip(named, weights, compressed, strict=True):
        report = describe(name, weight, value, share * weight.numel(), step.notes | unseen)
        made.append((value.to(matrix.device), report))
    return made


def _by_format(group: Group) -> list[Group]:
    """Layers of a group whose format was changed are compressed apart."""
    formats = list(dict.fromkeys(step.method.format for step in group))
    return [[step for step in group if step.method.format == one] for one in formats]


def _tune(model: nn.Module, own: Group, block: Finished, reports: list[LayerReport], place: torch.device) -> float:
    """Tune a block, and tell of its layers (`own`) anew in `reports`: seconds it took."""
    tuning = own[0].method.tuning
    assert tuning is not None
    with timed(place) as clock:
        tuned = tuning.tune(block)
    notes = {"block_tuned": tuned.after / tuned.before} if tuned.epoch else {"tuning_kept_start": 1.0}
    told = {report.name: index for index, report in enumerate(reports)}
    share = clock.seconds / sum(step.target.numel for step in own)
    for step in own:
        index, layer = told[step.target.name], model.get_submodule(step.target.name)
        assert isinstance(layer, CompressedLinear)  # experts are not calibrated
        before = reports[index]
        seconds = before.seconds + share * step.target.numel
        matrix = step.target.matrices()[step.target.name].to(place)
        reports[index] = describe(before.name, matrix, layer.weight.value, seconds, before.notes | notes)
    return clock.seconds


def _calibrated(
    model: nn.Module, steps: list[Step], calibration: Calibration, place: torch.device, progress: Progress
) -> tuple[list[LayerReport], float, float]:
    """Reports of all layers, and the seconds spent on statistics and on warming up."""
    reports: list[LayerReport] = []
    compressing, warming = 0.0, 0.0

    def finish(own: Group, block: Finished) -> None:
        nonlocal compressing
        seconds = _tune(model, own, block, reports, place)
        compressing += seconds

    with timed(place) as whole:
        groups = find_groups(model, steps, calibration.tokens[0, :PROBE_TOKENS])
        for group, statistic in progress(collected(model, groups, calibration, place, finish), "calibrating layers", len(groups)):
            with timed(place) as clock:
                warming += 0.0 if reports else _warm_up(group, statistic, place)
                reports += _compress(model, group, statistic, place)
            compressing += clock.seconds
    return reports, whole.seconds - compressing, warming
