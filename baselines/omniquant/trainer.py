"""The training of one block after another, each behind the rounded blocks before it.

Two streams of hidden states run through the model: one that only dense blocks have changed, and one through
the rounded blocks, which is the walk's own. A block is trained on the second; what it should return is what
the dense block makes of the first.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from baselines.omniquant.clipping import Clipping
from baselines.omniquant.student import Layer, Student
from baselines.omniquant.transformation import Transformation, smoothed, transformation
from sinq import Decision, PartReport, SiteKind
from sinq.calibration.collect import watching
from sinq.common.timing import timed
from sinq.methods.plan import LayerPlan
from sinq.model.blocks import HiddenStates
from sinq.model.context import PlannedInputs
from sinq.model.decoder import Block
from sinq.model.layer_inputs import LayerInputs
from sinq.model.walk import BlockView
from sinq.training.passes import passes


class Peak:
    """The largest magnitude of each channel of a module's inputs."""

    kind = SiteKind.inputs

    def __init__(self) -> None:
        self.largest = torch.zeros(())

    def update(self, inputs: Tensor) -> None:
        """Take note of inputs, (..., in)."""
        peaks = inputs.detach().reshape(-1, inputs.shape[-1]).abs().amax(0).float()
        self.largest = torch.maximum(self.largest.to(peaks), peaks)


class Learning(Protocol):
    """The options of a method that learns, which `OmniQuant` provides."""

    @property
    def clipping(self) -> bool: ...
    @property
    def transformation(self) -> bool: ...
    @property
    def alpha(self) -> float: ...
    @property
    def down(self) -> bool: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def clipping_rate(self) -> float: ...
    @property
    def transformation_rate(self) -> float: ...
    @property
    def relative_loss(self) -> bool: ...
    def rounding(self) -> Clipping: ...


class BlockTrainer:
    """Training of the blocks of one run, in their order.

    Args:
        method: the options.
        blocks: connections of each block, by its module; empty if the method needs none.
        inputs: what will be done to the inputs of the layers; None for nothing.
    """

    def __init__(
        self, method: Learning, blocks: Mapping[nn.Module, Block], inputs: PlannedInputs | None
    ) -> None:
        self.method, self.blocks, self.inputs = method, blocks, inputs
        self.dense: HiddenStates | None = None
        """Inputs of the next block behind dense blocks; None for those of the text."""

    def compress_block(self, block: BlockView) -> list[PartReport]:
        """Train a block and replace its layers; raise `ValueError` where a loss is not finite."""
        peaks = self.observe(block)
        if not block.steps:
            return []
        student = self._student(block, {module: peak.largest for module, peak in peaks.items()})
        with timed(block.device) as clock:
            before, after = self._train(student)
        _require_finite(block.index, before, after)
        trained = Decision("block_trained", after / before if before > 0 else 1.0)
        reports = student.store(clock.seconds, trained)
        with student.rounding():
            block.advance()
        return reports

    def observe(self, block: BlockView) -> dict[nn.Module, Peak]:
        """Run the dense block on its dense inputs, for the targets, and return what its layers saw."""
        method = self.method
        watched = smoothed(self.blocks[block.module], method.down) if method.transformation else []
        peaks = {module: Peak() for module in watched}
        inputs = block.inputs if self.dense is None else self.dense
        with timed(block.device, block.clock), watching(peaks.items()):
            self.dense = inputs.through(block.run)
        if inputs is not block.inputs:
            inputs.close()
        return peaks

    def loss(self, student: Student, window: int) -> Tensor:
        """Return the mean squared error of a block's output in a window."""
        assert self.dense is not None
        found = student.run(window)
        return torch.nn.functional.mse_loss(found, self.dense[window].to(found))

    def layer(self, plan: LayerPlan, block: BlockView) -> Layer:
        """Return the start of a layer."""
        method: Learning = plan.method  # type: ignore[assignment]
        rounding = method.rounding()
        if method.clipping:
            rounding = rounding.learned(next(iter(plan.target.matrices().values())))
        return Layer(plan, rounding)

    def groups(self, student: Student) -> list[dict[str, object]]:
        """Return what is trained, with its rates, as groups of an optimizer."""
        logits = [leaf for layer in student.layers for leaf in layer.leaves]
        scales = [] if student.transformation is None else student.transformation.leaves
        return [
            {"params": logits, "lr": self.method.clipping_rate},
            {"params": scales, "lr": self.method.transformation_rate},
        ]

    def _student(self, block: BlockView, peaks: Mapping[nn.Module, Tensor]) -> Student:
        layers = [self.layer(plan, block) for plan in block.steps]
        return Student(block, layers, self._transformation(block, peaks), self._inputs(block))

    def _inputs(self, block: BlockView) -> Mapping[nn.Module, LayerInputs]:
        if self.inputs is None:
            return {}
        return self.inputs.of_block([plan.target for plan in block.steps], block.pass_inputs, block.device)

    def _transformation(self, block: BlockView, peaks: Mapping[nn.Module, Tensor]) -> Transformation | None:
        if not self.method.transformation:
            return None
        connections = self.blocks[block.module]
        return transformation(connections, peaks, self.method.alpha, self.method.down, block.device)

    def _train(self, student: Student) -> tuple[float, float]:
        """Train, and return the mean loss before and after."""
        method, before = self.method, self._mean_loss(student)
        unit = before if method.relative_loss and before > 0 else 1.0
        optimizer = torch.optim.AdamW(trainable(self.groups(student)), weight_decay=0.0)
        windows = range(len(student.block.inputs))
        for _ in passes(
            optimizer,
            lambda window: self.loss(student, window) / unit,
            windows,
            method.epochs,
            method.batch,
        ):
            pass
        return before, self._mean_loss(student)

    @torch.no_grad()
    def _mean_loss(self, student: Student) -> float:
        windows = range(len(student.block.inputs))
        return sum(self.loss(student, window).item() for window in windows) / len(windows)


def trainable(groups: list[dict[str, object]]) -> list[dict[str, object]]:
    """Let gradients be taken by all that groups of an optimizer hold, and return the groups that hold any."""
    for group in groups:
        for leaf in group["params"]:  # type: ignore[attr-defined]
            leaf.requires_grad_()
    return [group for group in groups if group["params"]]


def _require_finite(index: int, before: float, after: float) -> None:
    """Raise `ValueError`, naming the block, if its loss was not finite before training or after it."""
    if not math.isfinite(before):
        raise ValueError(
            f"block {index}: the loss is {before} before training: its outputs overflow on the calibration"
            " text; try model.dtype=float32"
        )
    if not math.isfinite(after):
        raise ValueError(
            f"training of block {index} has diverged: its loss went from {before:.3g} to {after};"
            " try lower method.transformation_rate and method.clipping_rate"
        )
