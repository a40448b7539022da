"""Loop that replaces a model's layers by compressed ones.

    inputs of block k ─▶ statistics ─▶ quantize each layer of the block ─▶ inputs of block k+1

`compress_blocks` walks through the model (`model/walk.py`): each block is given the text as the *compressed*
blocks before it transform it, and the method decides what is done to a block. `compress_layers` serves
methods that need no such order: methods without statistics, or with statistics of the dense model. Either way
only one block or one matrix is on the device at a time, so a model larger than the accelerator needs no
special case. Results go back to the model's device.

Layers that share a statistic (`layer_statistics.py` finds them) are handed to the method together. Layers
outside the blocks come last. Everything that can be refused is refused by a method's `plan`, before the first
matrix is changed.
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
from sinq.methods.plan import LayerPlan, Plan, naming
from sinq.methods.report import CompressionReport, Decision, PartReport, describe
from sinq.model.blocks import find_blocks, run_model
from sinq.model.context import Context
from sinq.model.walk import BlockView, outside_blocks, walk

PROBE_TOKENS = 8
WARM_UP_ROWS = 16


class CompressesBlocks(Protocol):
    """The part of a method that `compress_blocks` needs, which `BlockMethod` provides."""

    def compress_block(self, block: BlockView) -> list[PartReport]: ...


@torch.no_grad()
def compress_blocks(
    model: nn.Module,
    method: CompressesBlocks,
    plan: Plan,
    calibration: Calibration,
    context: Context,
) -> CompressionReport:
    """Compress each block behind the compressed ones before it, then the layers outside the blocks."""
    running = Clock()
    compiling = warm_up(plan.steps, context.device_for(model))
    outside = outside_blocks(model, plan.steps)  # found now: replaced layers are in no block any more
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
    """Compress layers one by one, with statistics of the dense model where the plan's methods need any."""
    device, running = context.device_for(model), Clock()
    compiling = warm_up(plan.steps, device)
    work: Iterable[tuple[Group, Statistic | None]]
    if calibration is None or plan.steps[0].method.statistic is None:
        groups = plan.groups()
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
    return CompressionReport(
        tuple(reports), plan.skipped, plan.left_dense, running.seconds, quantizing, compiling
    )


def _compress_outside(
    model: nn.Module,
    outside: Sequence[LayerPlan],
    tokens: Tensor,
    context: Context,
    clock: Clock,
) -> list[PartReport]:
    """Compress layers that are in no block, with statistics of the model in its present state."""
    groups = _groups(model, outside, tokens, clock)
    device = context.device_for(model)
    statistics = collect_in_model(model, groups, device, tokens, clock)
    reports: list[PartReport] = []
    for group, statistic in zip(groups, statistics, strict=True):
        reports += compress_group(model, group, statistic, device)
    return reports


def _groups(model: nn.Module, plans: Sequence[LayerPlan], tokens: Tensor, clock: Clock) -> list[Group]:
    """Find which layers share a statistic by running the model on a few tokens."""
    with timed(next(model.parameters()).device, clock):
        return find_groups(plans, lambda: run_model(model, tokens[0, :PROBE_TOKENS]))


def warm_up(plans: Sequence[LayerPlan], device: torch.device) -> float:
    """Quantize a few rows of noise, so that no layer's time includes compiling; return seconds."""
    if chosen(device) is Kernel.reference or not plans:
        return 0.0
    height, columns = plans[0].target.shape
    method = plans[0].method.warming_up()
    rows = min(height, method.format.tile((WARM_UP_ROWS, columns))[0])
    with timed(device) as clock:
        statistic = method.statistic and method.statistic.of_noise((rows, columns), device)
        noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(device)
        method.quantize_together([noise], statistic)
    return clock.seconds


def compress_group(
    model: nn.Module,
    group: Group,
    statistic: Statistic | None,
    device: torch.device,
) -> list[PartReport]:
    """Quantize the matrices of layers that share a statistic, and put the results into the model."""
    reports = []
    for plans in _by_method(group):
        named = [(layer, name, matrix) for layer in plans for name, matrix in layer.target.matrices().items()]
        quantized = quantize_matrices(named, statistic, device)
        weights: dict[str, list[CompressedWeight]] = {}
        for (layer, _, _), (weight, report) in zip(named, quantized, strict=True):
            weights.setdefault(layer.target.name, []).append(weight)
            reports.append(report)
        for layer in plans:
            layer.target.replace(model, weights[layer.target.name])
    return reports


def quantize_matrices(
    named: Sequence[tuple[LayerPlan, str, Tensor]], statistic: Statistic | None, device: torch.device
) -> list[tuple[CompressedWeight, PartReport]]:
    """Quantize matrices that share a statistic, on `device`; each result is on the device of its matrix.

    Args:
        named: (plan of the layer, name, matrix) of each matrix. A matrix is (out, in) in any floating dtype.
            All plans have one method.

    Raises:
        ValueError: naming the layers, if the statistic is not finite, or the method cannot quantize them.
    """
    names = [name for _, name, _ in named]
    _require_finite(statistic, names)
    weights = [matrix.to(device, torch.float32).contiguous() for _, _, matrix in named]
    unseen = statistic is not None and statistic.tokens == 0
    decisions = (Decision("inputs_never_seen", 1.0),) if unseen else ()
    with timed(device) as clock, naming(names):
        compressed = named[0][0].method.quantize_together(weights, statistic)
    share = clock.seconds / sum(weight.numel() for weight in weights)
    results = []
    for (layer, name, matrix), weight, value in zip(named, weights, compressed, strict=True):
        report = describe(name, weight, value, share * weight.numel(), (*layer.decisions, *decisions))
        results.append((value.to(matrix.device), report))
    return results


def _require_finite(statistic: Statistic | None, names: Sequence[str]) -> None:
    if statistic is not None and not all(sums.isfinite().all() for sums in statistic.tensors().values()):
        raise ValueError(
            f"layer {', '.join(names)}: the {type(statistic).described()} has NaN or Inf;"
            " the model overflows on the calibration text; try model.dtype=float32"
        )


def _by_method(group: Group) -> list[Group]:
    """Split a group by method: layers whose format was shrunk, for one, are compressed separately."""
    alike: list[Group] = []
    for layer in group:
        known = next((others for others in alike if others[0].method == layer.method), None)
        alike.append([layer]) if known is None else known.append(layer)
    return alike
