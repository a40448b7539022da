"""Tuning as a method around another: each block is tuned when whatever compresses it is done with it."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.timing import timed
from sinq.formats.base import CompressedWeight, Format
from sinq.methods.base import BlockMethod
from sinq.methods.plan import Plan
from sinq.methods.report import Decision, PartReport, describe, measured
from sinq.model.context import Context
from sinq.model.experts import CompressedExperts
from sinq.model.walk import BlockView
from sinq.training.block_tuning import BlockTuning


@dataclass(frozen=True)
class Tuned(BlockMethod):
    """Tunes blocks that `inner` has compressed until their outputs are near the dense ones, as in `Tuned(AQLM())`.

    Layers outside the blocks are compressed by `inner` and not tuned. Reports are of layers after tuning.
    """

    name: ClassVar[str] = "tuned"

    inner: BlockMethod
    tuning: BlockTuning = field(default_factory=BlockTuning)

    @property
    def statistic(self) -> type[Statistic] | None:
        return self.inner.statistic

    @property
    def format(self) -> Format:
        """Storage of a matrix, where `inner` has one for all."""
        inner: Any = self.inner
        return inner.format

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        return self.inner.plan(model, calibration, context)

    def compress_block(self, block: BlockView) -> list[PartReport]:
        targets, dense = block.outputs(), _dense(block)  # before anything is compressed
        reports = self.inner.compress_block(block)
        if not reports:
            return []
        with timed(block.device) as clock:
            result = self.tuning.tune(block, targets)
        improved = Decision("block_tuned", result.after / result.before)
        decision = improved if result.epoch else Decision("tuning_kept_start", 1.0)
        share = clock.seconds / max(1, sum(report.dense_parameters for report in reports))
        compressed = _compressed(block)
        pairs = ((report, dense.get(report.name), compressed.get(report.name)) for report in reports)
        return [_after_tuning(*pair, share, decision) for pair in pairs]


def _dense(block: BlockView) -> dict[str, Tensor]:
    """Return the planned matrices of a block, (out, in), by name."""
    return {name: matrix for step in block.steps for name, matrix in step.target.matrices().items()}


def _compressed(block: BlockView) -> dict[str, CompressedWeight]:
    """Return what the planned matrices of a block have become, by name."""
    found: dict[str, CompressedWeight] = {}
    for step in block.steps:
        module: Any = block.model.get_submodule(step.target.name)
        if isinstance(module, CompressedExperts):
            found |= {f"{step.target.name}.{k}": store.value for k, store in enumerate(module.stores())}
        else:
            found[step.target.name] = module.weight.value
    return found


def _after_tuning(
    report: PartReport,
    dense: Tensor | None,
    compressed: CompressedWeight | None,
    share: float,
    decision: Decision,
) -> PartReport:
    """Describe a matrix anew, with its share of the time; what was reported of other things stays."""
    seconds, decisions = report.seconds + share * report.dense_parameters, (*report.decisions, decision)
    if dense is None or compressed is None:
        return replace(report, seconds=seconds, decisions=decisions)
    noted = {each.name for each in measured(compressed.notes)}
    own = [each for each in decisions if each.name not in noted]
    return describe(report.name, dense, compressed, seconds, own)
