"""Tuning as a method around another one: whatever compresses blocks or layers, each block is tuned when `inner` is done with it."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from sinq.calibration import Calibration
from sinq.clock import timed
from sinq.context import Context
from sinq.format import Format
from sinq.linear import CompressedExperts
from sinq.method import BlockMethod
from sinq.plan import Plan
from sinq.report import LayerReport, describe
from sinq.statistics import Statistic
from sinq.tensor import CompressedWeight
from sinq.tuning import BlockTuning
from sinq.walk import BlockView


@dataclass(frozen=True)
class Tuned(BlockMethod):
    """Tunes each block that `inner` has compressed until its output is near the dense block's, as in `Tuned(AQLM())`.

    Layers outside the blocks are compressed by `inner` and not tuned. Reports are of the layers as they are after tuning.
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

    def compress_block(self, block: BlockView) -> list[LayerReport]:
        targets = block.outputs()  # of the block while it is dense
        reports = self.inner.compress_block(block)
        if not reports:
            return []
        with timed(block.device) as clock:
            result = self.tuning.tune(block, targets)
        notes = {"block_tuned": result.after / result.before} if result.epoch else {"tuning_kept_start": 1.0}
        return _after_tuning(reports, block, clock.seconds, notes)


def _after_tuning(reports: list[LayerReport], block: BlockView, seconds: float, notes: dict[str, float]) -> list[LayerReport]:
    """Describe layers anew, each with its share of the time, by its weights."""
    share = seconds / sum(report.out_features * report.in_features for report in reports)
    matrices = {name: (matrix, value) for name, matrix, value in _matrices(block)}
    changed = []
    for report in reports:
        total = report.seconds + share * report.out_features * report.in_features
        if report.name in matrices:
            matrix, value = matrices[report.name]
            changed.append(describe(report.name, matrix.to(block.device), value, total, report.notes | notes))
        else:
            changed.append(replace(report, seconds=total, notes=report.notes | notes))
    return changed


def _matrices(block: BlockView) -> Iterator[tuple[str, Tensor, CompressedWeight]]:
    """Yield the name of each planned matrix of a block, the dense one, and what is in its place."""
    for step in block.steps:
        module: Any = block.model.get_submodule(step.target.name)
        stores = module.stores() if isinstance(module, CompressedExperts) else [module.weight]
        for (name, matrix), store in zip(step.target.matrices().items(), stores, strict=True):
            yield name, matrix, store.value
