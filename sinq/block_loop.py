"""The one loop that turns a model's layers into compressed ones, block by block.

    inputs of block k ─▶ statistics ─▶ quantize each layer of the block ─▶ outputs of the *compressed* block = inputs of block k+1

Calibration-free methods skip everything but the middle. Only one block (or, without calibration, one matrix) is on `device` at a time,
so a model larger than the accelerator is no special case; results go back to where the model lives.

Everything that can be refused is refused by `plan.py`, before the first matrix is touched.

What a calibrated run assumes: blocks are the model's largest `ModuleList`, each maps hidden states (first argument) to hidden states
(its output, or the first of a tuple), and its other arguments depend on the length of the window but not on its text.
Layers outside the blocks are compressed last, with statistics from the compressed model. Fused experts see tokens the
router chose for them, which no hook shows; methods that need statistics refuse them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinq.clock import timed
from sinq.layers import Layers
from sinq.plan import Quantizer, Step, plan
from sinq.progress import Progress
from sinq.report import CompressionReport, LayerReport, describe
from sinq.statistics import Statistic


def compress_layers(
    model: nn.Module,
    method: Quantizer,
    calibration: Tensor | None,
    *,
    layers: Layers,
    device: torch.device | str | None,
    progress: Progress,
) -> CompressionReport:
    """`LayerMethod.compress`: see there for arguments."""
    steps, skipped = plan(model, method, calibration, layers)
    place = torch.device(device) if device is not None else next(model.parameters()).device
    seconds = 0.0
    with torch.no_grad():
        if method.statistic is None or calibration is None:
            reports = [entry for step in progress(steps, "quantizing layers", len(steps)) for entry in _compress(model, step, None, place)]
        else:
            reports, seconds = _calibrated(model, steps, calibration, place, progress)
    return CompressionReport(tuple(reports), skipped, seconds, sum(report.seconds for report in reports))


def _compress(model: nn.Module, step: Step, statistic: Statistic | None, place: torch.device) -> list[LayerReport]:
    """Quantize every matrix of a target and put the results into the model."""
    weights, reports = [], []
    for name, matrix in step.target.matrices().items():
        weight = matrix.to(place, torch.float32).contiguous()
        with timed(place) as clock:
            compressed = step.method.quantize(weight, statistic)
        reports.append(describe(name, weight, compressed, clock.seconds, step.notes))
        home = {key: tensor.to(matrix.device) for key, tensor in compressed.state_dict().items()}
        weights.append(type(compressed).from_state(compressed.config(), home))
    step.target.replace(model, weights)
    return reports


def _calibrated(
    model: nn.Module, steps: list[Step], calibration: Tensor, place: torch.device, progress: Progress
) -> tuple[list[LayerReport], float]:
    """Reports of all layers, and the seconds spent on statistics."""
    blocks = find_blocks(model)
    hidden, arguments = _enter(model, blocks, calibration)
    reports, seconds = [], 0.0
    for index in progress(range(len(blocks)), "calibrating blocks", len(blocks)):
        block, home = blocks[index], next(blocks[index].parameters()).device
        tensors = [*block.parameters(), *block.buffers()]
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
        for tensor in tensors:  # those that were replaced may be shared with a dense copy of the model
            tensor.data = tensor.data.to(home)
    outside = [step for step in steps if step.target.name not in {report.name for report in reports}]
    if outside:
        with timed(place) as clock, _collecting(outside, place) as statistics:
            for window in calibration:
                model(window[None].to(next(model.parameters()).device), use_cache=False)
        seconds += clock.seconds
        for step in outside:
            reports += _compress(model, step, statistics[step.target.name], place)
    return reports, seconds


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks: the `ModuleList` with the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList of blocks; calibrated methods need one")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with besides its hidden states."""


def _enter(model: nn.Module, blocks: nn.ModuleList, calibration: Tensor) -> tuple[list[Tensor], list[Arguments]]:
    """Hidden states of every window before the first block, and each block's other arguments.

    The model runs with blocks that only pass their input on, so this costs an embedding look-up.
    """
    arguments: list[Arguments] = [((), {}) for _ in blocks]
    hidden: list[Tensor] = []

    def pass_on(index: int) -> Any:
        def forward(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            arguments[index] = args, kwargs
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


def _run(block: nn.Module, hidden: list[Tensor], arguments: Arguments, place: torch.device) -> list[Tensor]:
    outputs = []
    args, kwargs = _moved(arguments, place)
    for states in hidden:
        output = block(states.to(place), *args, **kwargs)
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
