"""Tuning as a method around another: each block is tuned after the inner method has compressed it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.errors import NotApplicable
from sinq.common.options import check
from sinq.common.timing import timed
from sinq.formats.base import CompressedWeight, Format
from sinq.methods.base import BlockMethod
from sinq.methods.plan import Plan
from sinq.methods.report import Decision, PartReport, describe, measured
from sinq.model.blocks import HiddenStates
from sinq.model.context import Context, PlannedInputs
from sinq.model.experts import CompressedExperts
from sinq.model.linear import CompressedLinear
from sinq.model.walk import BlockView
from sinq.training.block_tuning import BlockTuning


@dataclass(frozen=True)
class Tuned(BlockMethod):
    """Blocks compressed by `inner`, then tuned until their outputs are near the dense ones: `Tuned(AQLM())`.

    Layers outside the blocks are compressed by `inner` and not tuned. Reports describe the layers after
    tuning.
    """

    name: ClassVar[str] = "tuned"

    inner: BlockMethod
    tuning: BlockTuning = field(default_factory=BlockTuning)
    dense_inputs: bool = False
    """Tune towards what the dense block makes of inputs behind dense blocks (PrefixQuant), not of inputs
    behind compressed ones (AQLM)."""
    round_inputs: bool = False
    """Tune behind inputs that are rounded as a method around this one says, with their static scales and
    zeros among what is trained."""

    def __post_init__(self) -> None:
        check(self, "method")
        if not isinstance(self.inner, BlockMethod):
            raise NotApplicable(
                f"tuning goes block by block; inner={type(self.inner).__name__} does not work that way"
            )
        if self.inner.trains:
            raise NotApplicable(
                f"inner={type(self.inner).__name__} trains blocks by itself, and is not tuned after it;"
                f" use {type(self.inner).__name__} alone"
            )

    @property
    def statistic(self) -> type[Statistic] | None:
        return self.inner.statistic

    @property
    def format(self) -> Format:
        """Storage of a matrix, where `inner` has one format for all."""
        inner: Any = self.inner
        return inner.format

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        return self.inner.plan(model, calibration, context)

    def of_run(self, context: Context) -> "TunedBlocks":
        return TunedBlocks(self, context.inputs if self.round_inputs else None)

    def compress_block(self, block: BlockView) -> list[PartReport]:
        return TunedBlocks(self, None).compress_block(block)


class TunedBlocks:
    """Compression and tuning of the blocks of one run, in their order."""

    def __init__(self, method: Tuned, inputs: PlannedInputs | None) -> None:
        self.method, self.inputs = method, inputs
        self.dense: HiddenStates | None = None
        """Inputs of the next block behind dense blocks; None for those of the text."""

    def compress_block(self, block: BlockView) -> list[PartReport]:
        targets, dense = self._targets(block), _dense(block)  # before anything is compressed
        reports = self.method.inner.compress_block(block)
        if not reports:
            return []
        with self._inputs(block):
            with timed(block.device) as clock:
                result = self.method.tuning.tune(block, targets)
            if self.inputs is not None:
                block.advance()
        improved = Decision("block_tuned", result.after / result.before)
        decision = improved if result.epoch else Decision("tuning_kept_start", 1.0)
        share = clock.seconds / max(1, sum(report.dense_parameters for report in reports))
        compressed = _compressed(block)
        return [
            _after_tuning(report, dense.get(report.name), compressed.get(report.name), share, decision)
            for report in reports
        ]

    def _targets(self, block: BlockView) -> HiddenStates:
        """Return what the dense block should be replaced by on each window."""
        if not self.method.dense_inputs:
            return block.outputs()
        inputs = block.inputs if self.dense is None else self.dense
        with torch.no_grad(), timed(block.device, block.clock):
            self.dense = inputs.through(block.run)
        if inputs is not block.inputs:
            inputs.close()
        return self.dense

    def _inputs(self, block: BlockView) -> AbstractContextManager[None]:
        if self.inputs is None:
            return nullcontext()
        modules = {layer.target.name: block.model.get_submodule(layer.target.name) for layer in block.steps}
        layers = {name: part for name, part in modules.items() if isinstance(part, CompressedLinear)}
        return self.inputs.attached(block, layers)


def _dense(block: BlockView) -> dict[str, Tensor]:
    """Return the planned matrices of a block, (out, in), by name."""
    return {name: matrix for layer in block.steps for name, matrix in layer.target.matrices().items()}


def _compressed(block: BlockView) -> dict[str, CompressedWeight]:
    """Return the compressed weights of a block's planned matrices, by name."""
    found: dict[str, CompressedWeight] = {}
    for layer in block.steps:
        name = layer.target.name
        module: Any = block.model.get_submodule(name)
        if isinstance(module, CompressedExperts):
            found |= {f"{name}.{k}": store.value for k, store in enumerate(module.stores())}
        else:
            found[name] = module.weight.value
    return found


def _after_tuning(
    report: PartReport,
    dense: Tensor | None,
    compressed: CompressedWeight | None,
    share: float,
    decision: Decision,
) -> PartReport:
    """Describe a matrix anew after tuning; reports of other parts keep their measurements.

    Args:
        share: seconds of tuning per parameter of the dense block.
    """
    seconds = report.seconds + share * report.dense_parameters
    decisions = (*report.decisions, decision)
    if dense is None or compressed is None:
        return replace(report, seconds=seconds, decisions=decisions)
    noted = {note.name for note in measured(compressed.notes)}
    kept = [decision for decision in decisions if decision.name not in noted]
    return describe(report.name, dense, compressed, seconds, kept)
