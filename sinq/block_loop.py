"""The one loop that turns a model's layers into compressed ones, block by block.

    inputs of block k ─▶ statistics ─▶ quantize each layer of the block ─▶ outputs of the *compressed* block = inputs of block k+1

Calibration-free methods skip everything but the middle. Only one block (or, without calibration, one matrix) is on `device` at a time,
so a model larger than the accelerator is no special case; results go back to where the model lives.

Everything that can be refused is refused by `plan`, before the first matrix is touched.

What a calibrated run assumes: blocks are the model's largest `ModuleList`, each maps hidden states (first argument) to hidden states
(its output, or the first of a tuple), and its other arguments depend on the length of the window but not on its text.
Layers outside the blocks are compressed last, with statistics from the compressed model. Fused experts see tokens the
router chose for them, which no hook shows; methods that need statistics refuse them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sinq.layers import Layers, OnMisfit, Target, find_targets
from sinq.progress import Progress
from sinq.report import CompressionReport, LayerReport, describe
from sinq.statistics import Statistic

if TYPE_CHECKING:
    from sinq.method import LayerMethod


@dataclass(frozen=True)
class Step:
    """A target, the method as it fits that target, and what was decided for it."""

    target: Target
    method: LayerMethod
    notes: dict[str, float]


def compress_layers(
    model: nn.Module, method: LayerMethod, calibration: Tensor | None, layers: Layers, device: torch.device | str | None, progress: Progress
) -> CompressionReport:
    """`LayerMethod.compress`: see there for arguments."""
    steps, skipped = plan(model, method, calibration, layers)
    place = torch.device(device) if device is not None else next(model.parameters()).device
    with torch.no_grad():
        if method.statistic is None or calibration is None:
            reports = [report for step in progress(steps, "quantizing layers", len(steps)) for report in _compress(model, step, None, place)]
            return _total(reports, skipped, 0.0)
        return _calibrated(model, steps, skipped, calibration, place, progress)


def plan(model: nn.Module, method: LayerMethod, calibration: Tensor | None, layers: Layers) -> tuple[list[Step], tuple[str, ...]]:
    """Which layers are compressed and how; names of the layers left dense because the grid does not fit.

    Raises:
        ValueError: statistics are needed and cannot be had; a group size does not divide layers; a weight is not finite.
    """
    targets = find_targets(model, layers.exclude)
    if method.statistic is not None:
        _require_calibration(method, calibration, targets)
    misfits = [t for t in targets if not method.grid.fits(t.shape)]
    if misfits and layers.on_misfit is OnMisfit.error:
        raise ValueError(_explain_misfits(method, misfits))
    for target in targets:
        _require_finite(target)
    steps, skipped = [], []
    for target in targets:
        if method.grid.fits(target.shape):
            steps.append(Step(target, method, {}))
        elif layers.on_misfit is OnMisfit.skip:
            skipped.append(target.name)
        else:
            steps.append(_shrink(method, target))
    if not steps:
        raise ValueError(f"group_size={method.grid.group_size} fits none of the {len(skipped)} layers, so on_misfit=skip leaves nothing to compress")
    return steps, tuple(skipped)


def _require_calibration(method: LayerMethod, calibration: Tensor | None, targets: list[Target]) -> None:
    name, needed = type(method).__name__, method.statistic.__name__ if method.statistic else ""
    if calibration is None:
        raise ValueError(f"{name} needs calibration text: it works from the {needed} of each layer's inputs. Choose one with calibration=…")
    experts = [t.name for t in targets if t.parameter is not None]
    if experts:
        raise ValueError(f"{name} needs the {needed} of each layer's inputs, which fused experts ({experts[0]}, …) do not show; add them to layers.exclude")


def _explain_misfits(method: LayerMethod, misfits: list[Target]) -> str:
    by_sizes: dict[str, list[Target]] = {}
    for target in misfits:
        sizes = [str(size) for size in method.grid.fitting_sizes(target.shape) if size <= 512]
        by_sizes.setdefault(", ".join(sizes) or "no size", []).append(target)
    parts = [f"{len(like)} like {like[0].name} ({like[0].shape[0]}×{like[0].shape[1]}) take {sizes}" for sizes, like in by_sizes.items()]
    return f"group_size={method.grid.group_size} does not divide {len(misfits)} layers: {'; '.join(parts)}. Choose another, or on_misfit=shrink|skip"


def _shrink(method: LayerMethod, target: Target) -> Step:
    grid = method.grid.shrunk(target.shape)
    if grid is None:
        raise ValueError(f"no group size from 2 to {method.grid.group_size} divides {target.name} ({target.shape[0]}×{target.shape[1]}); use on_misfit=skip or layers.exclude")
    return Step(target, method.with_grid(grid), {"shrunk_group_size": float(grid.group_size)})


def _require_finite(target: Target) -> None:
    for name, matrix in target.matrices().items():
        if not torch.isfinite(matrix).all():
            raise ValueError(f"layer {name} has NaN or Inf in its weight; repair the checkpoint or add the layer to layers.exclude")


def _compress(model: nn.Module, step: Step, statistic: Statistic | None, place: torch.device) -> list[LayerReport]:
    """Quantize every matrix of a target and put the results into the model."""
    weights, reports = [], []
    for name, matrix in step.target.matrices().items():
        weight = matrix.to(place, torch.float32)
        with timed(place) as clock:
            compressed = step.method.quantize(weight, statistic)
        reports.append(describe(name, weight, compressed, clock.seconds, step.notes))
        home = {key: tensor.to(matrix.device) for key, tensor in compressed.state_dict().items()}
        weights.append(type(compressed).from_state(compressed.config(), home))
    step.target.replace(model, weights)
    return reports


class Clock:
    """Seconds measured by `timed`."""

    seconds = 0.0


@contextmanager
def timed(device: torch.device) -> Iterator[Clock]:
    """Wall-clock time of a piece of work, with the device's queue drained at both ends."""
    clock = Clock()
    _drain(device)
    start = time.perf_counter()
    yield clock
    _drain(device)
    clock.seconds = time.perf_counter() - start


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _total(reports: list[LayerReport], skipped: tuple[str, ...], seconds_statistics: float) -> CompressionReport:
    return CompressionReport(tuple(reports), skipped, seconds_statistics, sum(report.seconds for report in reports))


def _calibrated(
    model: nn.Module, steps: list[Step], skipped: tuple[str, ...], calibration: Tensor, place: torch.device, progress: Progress
) -> CompressionReport:
    blocks = find_blocks(model)
    hidden, arguments = _enter(model, blocks, calibration)
    reports, seconds = [], 0.0
    for index in progress(range(len(blocks)), "calibrating blocks", len(blocks)):
        block, home = blocks[index], next(blocks[index].parameters()).device
        members = set(block.modules())
        inside = [step for step in steps if step.target.module in members]
        block.to(place)
        with timed(place) as clock, _collecting(inside, place) as statistics:
            _run(block, hidden, arguments[index], place)
        for step in inside:
            reports += _compress(model, step, statistics[step.target.name], place)
        with timed(place) as second_pass:
            hidden = _run(block, hidden, arguments[index], place)
        seconds += clock.seconds + second_pass.seconds
        block.to(home)
    outside = [step for step in steps if step.target.name not in {report.name for report in reports}]
    if outside:
        with timed(place) as clock, _collecting(outside, place) as statistics:
            for window in calibration:
                model(window[None].to(next(model.parameters()).device), use_cache=False)
        seconds += clock.seconds
        for step in outside:
            reports += _compress(model, step, statistics[step.target.name], place)
    return _total(reports, skipped, seconds)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks: the `ModuleList` with the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList of blocks; calibrated methods need one")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def _enter(model: nn.Module, blocks: nn.ModuleList, calibration: Tensor) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Hidden states of every window before the first block, and each block's other arguments.

    The model runs with blocks that only pass their input on, so this costs an embedding look-up.
    """
    arguments: list[dict[str, Any]] = [{} for _ in blocks]
    hidden: list[Tensor] = []

    def pass_on(index: int) -> Any:
        def forward(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args:
                raise ValueError(f"{type(blocks[index]).__name__} takes positional arguments; calibrated methods cannot run it alone")
            arguments[index] = kwargs
            if index == 0:
                hidden.append(states.cpu())
            return states

        return forward

    home = next(model.parameters()).device
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            block.forward = pass_on(index)
            stack.callback(delattr, block, "forward")
        for window in calibration:
            model.base_model(window[None].to(home), use_cache=False)  # type: ignore[operator]
    return hidden, arguments


def _run(block: nn.Module, hidden: list[Tensor], arguments: dict[str, Any], place: torch.device) -> list[Tensor]:
    outputs = []
    kwargs = _moved(arguments, place)
    for states in hidden:
        output = block(states.to(place), **kwargs)
        outputs.append((output[0] if isinstance(output, tuple) else output).cpu())
    return outputs


def _moved(value: Any, place: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(place)
    if isinstance(value, dict):
        return {key: _moved(item, place) for key, item in value.items()}
    return tuple(_moved(item, place) for item in value) if isinstance(value, tuple) else value


@contextmanager
def _collecting(steps: list[Step], place: torch.device) -> Iterator[dict[str, Statistic]]:
    """Feeds the inputs of each target to an accumulator while a block runs."""
    statistics: dict[str, Statistic] = {}
    with ExitStack() as stack:
        for step in steps:
            assert step.method.statistic is not None
            accumulator = step.method.statistic(step.target.shape[1], place)
            statistics[step.target.name] = accumulator
            hook = step.target.module.register_forward_pre_hook(lambda _, args, accumulator=accumulator: accumulator.update(args[0]))
            stack.callback(hook.remove)
        yield statistics
