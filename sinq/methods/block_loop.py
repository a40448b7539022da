"""The loop that turns a model's layers into compressed ones.

    inputs of block k ─▶ statistics ─▶ quantize each layer of the block ─▶ inputs of block k+1

`compress_blocks` goes through the model in a walk (`walk.py`), in which each block is given what the *compressed*
blocks before it make of the text, and leaves what is done to a block to the method. `compress_layers` is for what
needs no such order: methods without statistics, or with those of the dense model. Either way only one block or one
matrix is on the device at a time, so a model larger than the accelerator is no special case; results go back to where
the model lives.

Layers that share a statistic (`layer_statistics.py` finds them) are handed to the method together. Layers outside the
blocks come last. Everything that can be refused is refused by a method's `plan`, before the first matrix is touched.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.timing import Clock, timed
from sinq.formats.base import CompressedWeight
from sinq.kernels import Kernel, chosen
from sinq.methods.layer_statistics import Group, collect_in_model, dense_statistics, find_groups
from sinq.methods.plan import LayerPlan, Plan
from sinq.methods.report import CompressionReport, Decision, PartReport, describe
from sinq.model.blocks import find_blocks, run_model
from sinq.model.context import Context
from sinq.model.walk import BlockView, outside_blocks, walk

PROBE_TOKENS = 8
WARM_UP_ROWS = 16


class CompressesBlocks(Protocol):
    """The part of a method that `compress_blocks` needs; `BlockMethod` is it."""

    def compress_block(self, block: BlockView) -> list[PartReport]: ...


@torch.no_grad()
def compress_blocks(
    model: nn.Module,
    method: CompressesBlocks,
    plan: Plan,
    calibration: Calibration,
    context: Context,
) -> CompressionReport:
    """Let a method compress each block behind the compressed ones before it, then the layers outside the blocks."""
    running = Clock()
    compiling = warm_up(plan.steps, context.device_for(model))
    outside = outside_blocks(model, plan.steps)  # now: layers that were replaced are in no block any more
    reports: list[PartReport] = []
    blocks = walk(model, calibration.tokens, context, plan.steps, running)
    for block in context.progress(blocks, "compressing blocks", len(find_blocks(model))):
        reports += method.compress_block(block)
    reports += _compress_outside(model, outside, calibration.tokens, context, running)
    return _report(reports, plan, running, compiling)


@torch.no_grad()
def compress_layers(
    model: nn.Module,
    plan: Plan,
    calibration: Calibration | None,
    context: Context,
) -> CompressionReport:
    """Compress layers one by one, with statistics of the dense model where the plan's methods have any."""
    device, running = context.device_for(model), Clock()
    compiling = warm_up(plan.steps, device)
    work: Iterable[tuple[Group, Statistic | None]]
    if calibration is None or plan.steps[0].method.statistic is None:
        groups = [[step] for step in plan.steps]
        work = [(group, None) for group in groups]
    else:
        groups = _groups(model, plan.steps, calibration.tokens, running)
        work = dense_statistics(model, groups, calibration, context, running)
    reports: list[PartReport] = []
    for group, statistic in context.progress(work, "quantizing layers", len(groups)):
        reports += compress_group(model, group, statistic, device)
    return _report(reports, plan, running, compiling)


def _report(reports: Sequence[PartReport], plan: Plan, running: Clock, compiling: float) -> CompressionReport:
    quantizing = sum(report.seconds for report in reports)
    return CompressionReport(tuple(reports), plan.skipped, running.seconds, quantizing, compiling)


def _compress_outside(
    model: nn.Module,
    outside: Sequence[LayerPlan],
    tokens: Tensor,
    context: Context,
    clock: Clock,
) -> list[PartReport]:
    """Compress the layers that are in no block, on statistics of the model as it is now."""
    groups = _groups(model, outside, tokens, clock)
    device = context.device_for(model)
    statistics = collect_in_model(model, groups, device, tokens, clock)
    reports: list[PartReport] = []
    for group, statistic in zip(groups, statistics, strict=True):
        reports += compress_group(model, group, statistic, device)
    return reports


def _groups(model: nn.Module, steps: Sequence[LayerPlan], tokens: Tensor, clock: Clock) -> list[Group]:
    """Find which layers share a statistic by running the model on a few tokens."""
    with timed(next(model.parameters()).device, clock):
        return find_groups(steps, lambda: run_model(model, tokens[0, :PROBE_TOKENS]))


def warm_up(steps: Sequence[LayerPlan], device: torch.device) -> float:
    """Quantize a few rows for nothing, so that compiling a kernel is no layer's time; return the seconds it took."""
    if chosen(device) is Kernel.reference or not steps:
        return 0.0
    matrix, method = next(iter(steps[0].target.matrices().values())), steps[0].method.warming_up()
    rows = min(len(matrix), method.format.tile((WARM_UP_ROWS, matrix.shape[1]))[0])
    with timed(device) as clock:
        statistic = method.statistic and method.statistic.of_noise((rows, matrix.shape[1]), device)
        method.quantize_together([matrix[:rows].to(device, torch.float32).contiguous()], statistic)
    return clock.seconds


def compress_group(
    model: nn.Module,
    group: Group,
    statistic: Statistic | None,
    device: torch.device,
) -> list[PartReport]:
    """Quantize the matrices of targets that share a statistic, and put the results into the model."""
    reports = []
    for alike in _by_format(group):
        named = [(step, name, matrix) for step in alike for name, matrix in step.target.matrices().items()]
        made: dict[str, list[CompressedWeight]] = {}
        for (step, _, _), (value, report) in zip(
            named, quantize_matrices(named, statistic, device), strict=True
        ):
            made.setdefault(step.target.name, []).append(value)
            reports.append(report)
        for step in alike:
            step.target.replace(model, made[step.target.name])
    return reports


def quantize_matrices(
    named: Sequence[tuple[LayerPlan, str, Tensor]], statistic: Statistic | None, device: torch.device
) -> list[tuple[CompressedWeight, PartReport]]:
    """Quantize matrices that share a statistic, on a device; the values lie where the matrices did.

    Args:
        named: of each matrix the step it belongs to, its name, and itself, (out, in) in any floating dtype. All
            steps have one format.
    """
    weights = [matrix.to(device, torch.float32).contiguous() for _, _, matrix in named]
    unseen = statistic is not None and statistic.tokens == 0
    decisions = (Decision("inputs_never_seen", 1.0),) if unseen else ()
    with timed(device) as clock:
        compressed = named[0][0].method.quantize_together(weights, statistic)
    share = clock.seconds / sum(weight.numel() for weight in weights)
    made = []
    for (step, name, matrix), weight, value in zip(named, weights, compressed, strict=True):
        report = describe(name, weight, value, share * weight.numel(), (*step.decisions, *decisions))
        made.append((value.to(matrix.device), report))
    return made


def _by_format(group: Group) -> list[Group]:
    """Split a group by format: layers whose format was changed are compressed apart."""
    formats = list(dict.fromkeys(step.method.format for step in group))
    return [[step for step in group if step.method.format == one] for one in formats]
