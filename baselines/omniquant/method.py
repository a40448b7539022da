"""OmniQuant (arXiv 2308.13137): clipping of weights and scales of channels, learned block by block.

    minimize  mean (block_q(X_q) − block(X))²
    over      the share of its range that each group of weights keeps      (LWC, `clipping.py`)
              scales that move between a block's parameters                (LET, `transformation.py`)

X are hidden states behind dense blocks, X_q those behind the rounded ones (`trainer.py`). Rounding passes the
gradient straight through (`rounding.py`). Nothing learned remains: clipping becomes scales and zeros of RTN's
grid, and scales of channels are folded into the weights, so that size and speed are RTN's.

Inputs of layers are rounded by `activation=…` around the method, or fire (SpikeLLM), and it trains with such
inputs then. The sequence, the rates, AdamW without decay, batches of one window in the order of the text, and
20 epochs are those of the official code and its scripts, which take 128 × 2048 tokens of WikiText-2 train:
the domain of their evaluation.

Choices and differences:

- Groups of `grid.group_size` weights share a scale; the paper has whole rows too (`grid.group_size=` the
  widest row with `on_misfit=shrink`).
- The authors learn LET for Llama only where inputs are rounded: `method.transformation=false` is their W4A16.
  They set α to 0.75 for Llama's W4A4, and 40 epochs for W2A16.
- With the plain loss, steps are shorter than their rate says where gradients are near AdamW's 1e-8, as they
  are in small models: `method.relative_loss=true` is ours.
- Keys, values and queries: the authors round all three as inputs of attention. Here `kv=…` rounds keys and
  values, and with `kv.queries.bits=…` queries too, which training does not see. Scales between q and k then
  have no gradient where a row's groups have scales of their own, and stay 1.
- Layers outside the blocks are rounded to nearest.
- Architectures whose connections are known, and no mixtures; without LET, any.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from baselines.omniquant.clipping import Clipping
from baselines.omniquant.trainer import BlockTrainer
from sinq import Calibration, CompressionReport, Context, Grid, LayerMethod, NotApplicable, PartReport
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import check, number, whole
from sinq.formats.base import CompressedWeight
from sinq.formats.grid import Levels
from sinq.methods.block_loop import compress_blocks
from sinq.methods.plan import Plan
from sinq.model.decoder import Block, decoder
from sinq.model.walk import BlockView


@dataclass(frozen=True)
class OmniQuant(LayerMethod):
    """Learned clipping and learned scales of channels, on RTN's grid.

    Raises:
        ValueError: an option is out of its range.
        NotApplicable: the grid has a table of levels; nothing would be learned.
    """

    name: ClassVar[str] = "omniquant"
    trains: ClassVar[bool] = True

    grid: Grid = Grid()
    clipping: bool = True
    """Learn how much of its range a group keeps (LWC)."""
    transformation: bool = True
    """Learn scales of channels (LET)."""
    alpha: float = 0.5
    """Migration strength of the first scales: 0 evens out the weights, 1 the activations."""
    down: bool = False
    """Learn scales between up and down too."""
    epochs: int = 20
    """Passes over the windows."""
    batch: int = 1
    """Windows per step."""
    clipping_rate: float = 1e-2
    """Learning rate of the logits of clipping."""
    transformation_rate: float = 5e-3
    """Learning rate of scales of channels."""
    relative_loss: bool = False
    """Divide the loss by what it was before training: gradients are then large beside AdamW's 1e-8, in any
    unit of the hidden states."""

    def __post_init__(self) -> None:
        check(
            self,
            "method",
            alpha=number(least=0, most=1),
            epochs=whole(1),
            batch=whole(1),
            clipping_rate=number(above=0, most=10),
            transformation_rate=number(above=0, most=10),
        )
        if self.grid.levels is not Levels.uniform:
            raise NotApplicable(
                f"grid.levels={self.grid.levels.name} is not possible with {type(self).__name__}, whose"
                " ranges are learned for uniform levels; use grid.levels=uniform"
            )
        if not (self.clipping or self.transformation):
            raise NotApplicable(
                "method.clipping=false is not possible with method.transformation=false: nothing would be"
                " learned; use RTN"
            )

    @property
    def needs_calibration(self) -> bool:
        return True

    @property
    def needs_connections(self) -> bool:
        """True if the connections of a model's blocks must be known."""
        return self.transformation

    def rounding(self) -> Clipping:
        """Return the rounding of a matrix, with its whole range."""
        return Clipping(self.grid, 2**self.grid.bits - 1)

    def quantize(self, weight: Tensor, statistic: Any = None) -> CompressedWeight:
        return self.rounding().store(weight)

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        if calibration is None:
            raise NotApplicable(f"{type(self).__name__} learns from calibration text; {PASS_CALIBRATION}")
        plan = super().plan(model, calibration, context)
        self._refuse_inputs(context)
        self._connections(model)
        for step in plan.steps:
            target, name = step.target, type(self).__name__
            if target.parameter is not None:
                raise NotApplicable(f"{target.name} is of fused experts, which {name} does not train")
            if target.others:
                raise NotApplicable(
                    f"{target.name} and {target.names[1]} share a weight, and {name} trains each block alone;"
                    " add both to layers.exclude"
                )
        return plan

    def carry_out(
        self, plan: Plan, model: nn.Module, calibration: Calibration | None, context: Context
    ) -> CompressionReport:
        if calibration is None or not calibration.sequential:
            raise NotApplicable(
                f"{type(self).__name__} trains each block behind the rounded blocks before it,"
                " which calibration.sequential=false never runs; use calibration.sequential=true"
            )
        trainer = self.trainer(self._connections(model), context)
        return compress_blocks(model, trainer, plan, calibration, context)

    def trainer(self, blocks: dict[nn.Module, Block], context: Context) -> BlockTrainer:
        """Return what trains the blocks of one run.

        Args:
            blocks: connections of each block by its module; empty if none are needed.
        """
        return BlockTrainer(self, blocks, context.inputs)

    def compress_block(self, block: BlockView) -> list[PartReport]:
        raise NotApplicable(
            f"{type(self).__name__} trains blocks by itself and cannot be inside a method that does;"
            f" use {type(self).__name__} alone"
        )

    def _refuse_inputs(self, context: Context) -> None:
        """Raise `NotApplicable` for inputs whose scales are only known after training."""
        if context.inputs is not None and context.inputs.static:
            raise NotApplicable(
                f"activation.static=true is not possible with {type(self).__name__}, which trains before"
                " static scales are found; use activation=a4_token or another of dynamic scales"
            )

    def _connections(self, model: nn.Module) -> dict[nn.Module, Block]:
        """Return the connections of a model's blocks by module; none if none are needed.

        Raises:
            NotApplicable: they are not known, or there are experts.
        """
        if not self.needs_connections:
            return {}
        any_model: Any = model
        blocks = decoder(model).blocks
        if any(norm.routers for block in blocks for norm in block.norms):
            raise NotApplicable(
                f"{type(model).__name__} has experts, whose transformation {type(self).__name__} does not"
                " learn; use method.transformation=false, with experts in layers.exclude"
            )
        return dict(zip(any_model.model.layers, blocks, strict=True))
