"""MG-PTQ (arXiv 2501.18154): a graph neural network deals out bits to the columns of a layer, and GPTQ rounds them.

    graph.py     the layer's columns as a graph: edges are what GPTQ would push of one column's rounding error to another
    column_gnn.py       a network on it, trained for this one layer on its output error and on the mean of bits; it is not stored
    budget.py      its logits → bits of each column, with a mean that is the budget to the last column
    gptq.py             error feedback, each column rounded to its own levels within the ranges of its groups (`sinq/formats/mixed_columns.py`)

`allocator` puts something else in the network's place, at the same budget: `mlp` the same network without edges, `greedy` the separable
error ‖E_b[:, j]‖²/U_jj² of each column and width, `random` widths drawn for each column, `uniform` one width, which is GPTQ.

What our sources tell of the paper is its abstract: a graph of columns with edges from a Cholesky factor of the second-order Hessian, a
bit-width allocator trained on quantization error under a bound on mean bits by an approximate gradient, blockwise quantization after it.
Its settings and its code were not published there, so its numbers are not reproduced. Choices of ours, all of them:
- the graph: edges |U_jk|/U_jj made symmetric and normalised, all kept (`neighbours` keeps the strongest); no positions;
- a column's features: five standardised logarithms, and its weights in 32 random projections;
- the network: two rounds of messages, 64 wide, with a residual; one for each layer, its start the same in all (`seed`);
- the loss: tr(E(y) H E(y)ᵀ) over its value at the start, the squared excess of bits times 10; 128 random rows of the matrix stand for all;
- the gradient: straight-through, temperature from 1 to 0.1, 150 steps of Adam at 5e-3;
- the repair: the price of a bit by bisection on −log p, what is left to where it costs least;
- widths 1 to 4; all share the range, scale and zero of their group, those of the grid's bits; one bit is the middle ± a quarter range;
- columns in order of the diagonal of H, damping 0.01, static groups, as `gptq` here; channels never active take the smallest width and
  are rounded to nearest, not set to 0.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from baselines.gptq import GPTQ, ActOrder
from baselines.gptq.curvature import Curvature
from baselines.mgptq import budget, graph
from baselines.mgptq.network import Task, Training, trained_logits
from sinq import CompressedWeight, Grid, LayerMethod, Levels, NotApplicable, choose
from sinq.calibration.statistics import Hessian
from sinq.formats.mixed_columns import COLUMN_BITS, INDEX_BITS, ColumnLevels
from sinq.formats.rounding import positions


class Allocator(enum.Enum):
    """What deals out the bits."""

    gnn = "gnn"
    mlp = "mlp"
    greedy = "greedy"
    random = "random"
    uniform = "uniform"


@dataclass(frozen=True)
class MGPTQ(LayerMethod):
    """GPTQ with bits per column, dealt out by a graph neural network.

    Raises:
        ValueError: the budget cannot be met with these widths.
        NotApplicable: the grid's levels are a table, or have no zeros.
    """

    name: ClassVar[str] = "mgptq"

    grid: Grid = Grid(bits=2)
    """Of the groups' ranges, scales and zeros; its bits are those of a column whose levels are GPTQ's own."""
    average_bits: float | None = None
    """The budget, codes alone: mean over a layer's columns, which is met but for less than one step of one column. None: the grid's."""
    widths: tuple[int, ...] = (1, 2, 3, 4)
    """Bits a column may have, up to four of them."""
    allocator: Allocator = Allocator.gnn
    training: Training = field(default_factory=Training)
    """Of `gnn` and `mlp`."""
    neighbours: int | None = None
    """Of the graph: keep so many strongest edges of each column; None keeps all."""
    seed: int = 0
    damping: float = 0.01
    block: int = 128
    act_order: ActOrder = ActOrder.full
    true_sequential: bool = False

    statistic = Hessian

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(sorted(set(self.widths))))
        if not self.widths or not set(self.widths) <= set(COLUMN_BITS) or len(self.widths) > 2**INDEX_BITS:
            raise ValueError(
                f"method.widths={list(self.widths)} is not possible; it must be one to four of {COLUMN_BITS}"
            )
        if not self.widths[0] <= self.budget <= self.widths[-1]:
            raise ValueError(
                f"method.average_bits={self.budget} is not possible; it must be within method.widths={list(self.widths)}"
            )
        if self.allocator is Allocator.uniform and self.budget not in self.widths:
            raise ValueError(
                f"method.average_bits={self.budget} is not possible with allocator=uniform; it must be one of {self.widths}"
            )
        if self.grid.levels is not Levels.uniform or self.grid.symmetric:
            raise NotApplicable(
                "MG-PTQ spreads codes over a range: it needs levels=uniform and symmetric=false"
            )
        if self.neighbours is not None and self.neighbours < 1:
            raise ValueError(f"method.neighbours={self.neighbours} is not possible; it must be ≥ 1")
        _ = self.gptq  # its own checks

    @property
    def budget(self) -> float:
        """Mean bits of a column."""
        return self.grid.bits if self.average_bits is None else self.average_bits

    @property
    def gptq(self) -> GPTQ:
        """What rounds."""
        return GPTQ(self.grid, self.damping, self.block, self.act_order, self.true_sequential)

    def quantize(self, weight: Tensor, statistic: Hessian) -> CompressedWeight:
        return self.quantize_together([weight], statistic)[0]

    def quantize_together(self, weights: Sequence[Tensor], statistic: Hessian) -> list[CompressedWeight]:
        curvature = self.gptq.curvature(statistic)
        return [
            self.gptq.feed_back(weight, curvature, self.levels(self.bits(weight, curvature)))
            for weight in weights
        ]

    def levels(self, bits: Tensor) -> ColumnLevels:
        return ColumnLevels.of(bits, self.widths, self.grid)

    def bits(self, weight: Tensor, curvature: Curvature) -> Tensor:
        """Bits of each column of a matrix (out, in), int64 (in,)."""
        widths, order = torch.tensor(self.widths, device=weight.device), curvature.order
        if self.allocator is Allocator.uniform:
            return torch.full_like(order, int(self.budget))
        cost = self.cost(weight[:, order], curvature)
        cost = cost.masked_fill(curvature.dead[order][:, None], 0.0)  # no bit is worth its price there
        return torch.empty_like(order).scatter_(0, order, widths[budget.within(cost, widths, self.budget)])

    def cost(self, weight: Tensor, curvature: Curvature) -> Tensor:
        """What each column loses with each width, (in, widths); columns of `weight` (out, in) in the order they are rounded."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.allocator is Allocator.random:
            return budget.random(weight.shape[1], torch.tensor(self.widths, device=weight.device), generator)
        if self.allocator is Allocator.greedy:
            return budget.separable(self.errors(weight, curvature.order), curvature.factor)
        return -self.logits(weight, curvature, generator).log_softmax(1)

    def logits(self, weight: Tensor, curvature: Curvature, generator: torch.Generator) -> Tensor:
        """The trained network's, (in, widths)."""
        order, rows = curvature.order, self.training.rows or len(weight)
        drawn = torch.randperm(len(weight), generator=generator)[:rows].sort().values.to(weight.device)
        hessian, widths = curvature.hessian[order][:, order].float(), torch.tensor(self.widths).to(weight)
        task = Task(self.errors(weight[drawn], order), hessian, widths, float(self.budget))
        edges = (
            graph.adjacency(curvature.factor, self.neighbours) if self.allocator is Allocator.gnn else None
        )
        nodes = graph.features(weight, curvature.hessian.diagonal()[order], curvature.factor, generator)
        return trained_logits(task, edges, nodes, self.training, generator)[0]

    def errors(self, weight: Tensor, order: Tensor) -> Tensor:
        """W − Q_b(W) for each width b, rounded to nearest: float32 (widths, out, in), in the order of `weight`'s columns."""
        back = order.argsort()
        original = weight[:, back]
        scale, zero = choose(original, self.grid)
        assert zero is not None  # the grid is not symmetric
        place, by_column = positions(original, scale, zero), scale.repeat_interleave(self.grid.group_size, 1)
        errors = []
        for width in self.widths:
            levels = self.levels(torch.full_like(order, width))
            errors.append(((place - levels.position(levels.nearest(place))) * by_column)[:, order])
        return torch.stack(errors)
