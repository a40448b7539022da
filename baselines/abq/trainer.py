"""The training of ABQ-LLM: OmniQuant's, with other losses, and down matrices that are compensated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from baselines.abq.losses import attention_divergence, correction
from baselines.omniquant.student import Layer, Student
from baselines.omniquant.trainer import BlockTrainer, Learning, Peak
from sinq import NotApplicable
from sinq.methods.plan import LayerPlan
from sinq.model.attention_probabilities import Probabilities
from sinq.model.blocks import HiddenStates, find_blocks
from sinq.model.context import PlannedInputs
from sinq.model.decoder import Block
from sinq.model.walk import BlockView


@dataclass(frozen=True, eq=False)
class Compensated(Layer):
    """A layer to whose weight a bᵀ is added before it is rounded; nothing of it is stored."""

    a: Tensor
    """float32 (out, 1), 0 at the start."""
    b: Tensor
    """float32 (1, in), 1 at the start."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.a @ self.b


class LearningABQ(Learning, Protocol):
    """The options of a method that learns as ABQ-LLM does, which `ABQ` provides."""

    @property
    def compensated(self) -> tuple[int, int]: ...
    @property
    def compensation_rate(self) -> float: ...
    @property
    def squared_errors(self) -> bool: ...
    @property
    def released_attention(self) -> bool: ...


class ABQTrainer(BlockTrainer):
    """Training of the blocks of one run, in their order; the arguments are those of `BlockTrainer`."""

    method: LearningABQ
    same: HiddenStates
    """Outputs of the dense block on inputs behind rounded blocks."""
    attention: HiddenStates
    """Attention probabilities of the dense block behind dense blocks, (1, queries, keys)."""

    def __init__(
        self, method: LearningABQ, blocks: Mapping[nn.Module, Block], inputs: PlannedInputs | None
    ) -> None:
        super().__init__(method, blocks, inputs)
        self.method = method

    def observe(self, block: BlockView) -> dict[nn.Module, Peak]:
        self.same, self.attention = block.outputs(), HiddenStates()
        with Noting(self.attention):
            peaks = super().observe(block)
        if len(self.attention) != len(block.inputs):
            raise NotApplicable(
                f"block {block.index} showed {len(self.attention)} attention probabilities in"
                f" {len(block.inputs)} windows, and ABQ needs one in each; load the model with"
                " attn_implementation=sdpa or eager"
            )
        return peaks

    def loss(self, student: Student, window: int) -> Tensor:
        """Return DLC + AKL of a block in a window, and the squared errors if they are asked for."""
        assert self.dense is not None
        with Probabilities() as attention:
            found = student.run(window)
        targets = [outputs[window].to(found) for outputs in (self.dense, self.same)]
        loss = attention_divergence(
            attention.seen[0], self.attention[window].to(found), self.method.released_attention
        )
        for target in targets:
            loss = loss + correction(found, target)
            if self.method.squared_errors:
                loss = loss + torch.nn.functional.mse_loss(found, target)
        return loss

    def layer(self, plan: LayerPlan, block: BlockView) -> Layer:
        layer = super().layer(plan, block)
        if not self._is_compensated(plan.target.module, block):
            return layer
        rows, columns = plan.target.shape
        a, b = (torch.zeros(rows, 1, device=block.device), torch.ones(1, columns, device=block.device))
        return Compensated(layer.plan, layer.clipping, a, b)

    def groups(self, student: Student) -> list[dict[str, object]]:
        compensated = [layer for layer in student.layers if isinstance(layer, Compensated)]
        added = [part for layer in compensated for part in (layer.a, layer.b)]
        return [*super().groups(student), {"params": added, "lr": self.method.compensation_rate}]

    def _is_compensated(self, module: nn.Module, block: BlockView) -> bool:
        """Return True for down of the first and last blocks."""
        first, last = self.method.compensated
        if not (block.index < first or block.index >= len(find_blocks(block.model)) - last):
            return False
        return any(gated.down.module is module for gated in self.blocks[block.module].gated)


class Noting(Probabilities):
    """A context in which attention probabilities go to disk, one of each window."""

    def __init__(self, kept: HiddenStates) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        for probabilities in self.seen:
            self.kept.append(probabilities)
        self.seen.clear()
        return result
