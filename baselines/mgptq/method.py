"""MG-PTQ (arXiv 2501.18154): a graph neural network allocates bits to columns, and GPTQ rounds them.

    graph.py            a layer's columns as a graph: an edge is the error GPTQ would push between two columns
    network.py          a network on the graph, trained for this one layer on its output error and on the mean
                        of bits; it is not stored
    budget.py           logits → bits of each column, with a mean that is the budget to the last column
    baselines/gptq      error feedback, with separate levels for each column within the ranges of its groups
                        (`sinq/formats/mixed_columns.py`)

`allocator` replaces the network at the same budget: `mlp` is the same network without edges, `greedy` the
separable error ‖E_b[:, j]‖²/U_jj² of each column and bit-width, `random` bit-widths drawn for each column,
`uniform` one bit-width, which is GPTQ.

Our sources have only the paper's abstract: a graph of columns with edges from a Cholesky factor of the
second-order Hessian, a bit-width allocator trained on quantization error under a bound on mean bits by an
approximate gradient, blockwise quantization after it. Its settings and its code were not published there, so
its numbers are not reproduced. Chosen here:
- the graph: edges |U_jk|/U_jj made symmetric and normalised, all kept (`neighbours` keeps the strongest); no
  positions;
- a column's features: five standardised logarithms, and its weights in 32 random projections;
- the network: two rounds of messages, 64 wide, with a residual; one for each layer, with the same initial
  state in all layers (`seed`);
- the loss: tr(E(y) H E(y)ᵀ) over its initial value, the squared excess of bits times 10; 128 random rows of
  the matrix stand for all;
- the gradient: straight-through, temperature from 1 to 0.1, 150 steps of Adam at 5e-3;
- the repair: the Lagrange multiplier of a bit by bisection on −log p, remaining bits to where they cost
  least;
- bit-widths 1 to 4; all share the range, scale and zero of their group, those of the grid's bits; one bit is
  the middle ± a quarter range;
- columns in order of the diagonal of H, damping 0.01, static groups, as `gptq` here; channels never active
  take the smallest bit-width and are rounded to nearest, not set to 0. No row is rounded to nearest for its
  smaller error (`keep_better_rows` of `gptq`).
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
from baselines.rtn import RTN
from sinq import CompressedWeight, Grid, LayerMethod, Levels, Normalized, NotApplicable, choose
from sinq.calibration.statistics import Hessian
from sinq.common.options import SEED, check, number, one_of, several, whole
from sinq.formats.mixed_columns import COLUMN_BITS, INDEX_BITS, ColumnLevels
from sinq.formats.rounding import positions


class Allocator(enum.Enum):
    """Allocator of bits to columns."""

    gnn = "gnn"
    mlp = "mlp"
    greedy = "greedy"
    random = "random"
    uniform = "uniform"


@dataclass(frozen=True)
class MGPTQ(LayerMethod):
    """GPTQ with bits per column, allocated by a graph neural network.

    Raises:
        ValueError: the budget cannot be met with these bit-widths, or an option is out of its range.
        NotApplicable: the grid's levels are a table, or have no zeros.
    """

    name: ClassVar[str] = "mgptq"
    version: ClassVar[int] = 2
    """1 kept the better of GPTQ and round to nearest in each row, and damped by a mean with dead channels."""

    grid: Grid = Grid(bits=2)
    """Grid of the groups' ranges, scales and zeros; a column with the grid's bits has GPTQ's levels."""
    average_bits: float | None = None
    """Budget of codes: mean bits over a layer's columns, met up to less than one step of one column.

    None: the grid's bits.
    """
    widths: tuple[int, ...] = (1, 2, 3, 4)
    """Bit-widths a column may have, up to four."""
    allocator: Allocator = Allocator.gnn
    training: Training = field(default_factory=Training)
    """Training of `gnn` and `mlp`."""
    neighbours: int | None = None
    """Number of strongest edges the graph keeps for each column; None keeps all edges."""
    seed: int = 0
    damping: float = 0.01
    block: int = 128
    act_order: ActOrder = ActOrder.full
    true_sequential: bool = False

    statistic = Hessian

    def __post_init__(self) -> None:
        check(
            self,
            "method",
            average_bits=number(above=0),
            widths=several(one_of(*COLUMN_BITS)),
            neighbours=whole(1),
            seed=SEED,
            damping=number(least=0, most=1e6),
            block=whole(1),
        )
        object.__setattr__(self, "widths", tuple(sorted(set(self.widths))))
        if len(self.widths) > 2**INDEX_BITS:
            raise ValueError(
                f"method.widths={list(self.widths)} is not possible; it must be one to four of {COLUMN_BITS}"
            )
        if not self.widths[0] <= self.budget <= self.widths[-1]:
            raise ValueError(
                f"method.average_bits={self.budget} is not possible; "
                f"it must be within method.widths={list(self.widths)}"
            )
        if self.allocator is Allocator.uniform and self.budget not in self.widths:
            raise ValueError(
                f"method.average_bits={self.budget} is not possible with allocator=uniform; "
                f"it must be one of {self.widths}"
            )
        if self.grid.levels is not Levels.uniform or self.grid.symmetric:
            raise NotApplicable(
                "MG-PTQ spreads codes over a range: it needs levels=uniform and symmetric=false"
            )

    @property
    def budget(self) -> float:
        """Mean bits of a column."""
        return self.grid.bits if self.average_bits is None else self.average_bits

    @property
    def gptq(self) -> GPTQ:
        """Rounding with the same options."""
        return GPTQ(
            RTN(self.grid),
            damping=self.damping,
            block=self.block,
            act_order=self.act_order,
            true_sequential=self.true_sequential,
        )

    def quantize(self, weight: Tensor, statistic: Hessian) -> CompressedWeight:
        return self.quantize_together([weight], statistic)[0]

    def quantize_together(self, weights: Sequence[Tensor], statistic: Hessian) -> list[CompressedWeight]:
        curvature = self.gptq.curvature(statistic)
        return [
            self.gptq.feed_back(
                weight, Normalized(weight), [curvature], self.levels(self.bits(weight, curvature))
            )
            for weight in weights
        ]

    def levels(self, bits: Tensor) -> ColumnLevels:
        """Return the levels of columns with these bits, (in,)."""
        return ColumnLevels.of(bits, self.widths, self.grid)

    def bits(self, weight: Tensor, curvature: Curvature) -> Tensor:
        """Return the bits of each column of a matrix (out, in), int64 (in,)."""
        bit_widths, order = torch.tensor(self.widths, device=weight.device), curvature.order
        if self.allocator is Allocator.uniform:
            return torch.full_like(order, int(self.budget))
        cost = self.cost(weight[:, order], curvature)
        cost = cost.masked_fill(curvature.dead[order][:, None], 0.0)  # further bits gain nothing there
        chosen = bit_widths[budget.within(cost, bit_widths, self.budget)]
        return torch.empty_like(order).scatter_(0, order, chosen)

    def cost(self, weight: Tensor, curvature: Curvature) -> Tensor:
        """Return the cost of each column at each bit-width, (in, bit-widths).

        Args:
            weight: (out, in), columns in the order they are rounded.
            curvature: curvature of the layer's output error.
        """
        generator = torch.Generator().manual_seed(self.seed)
        if self.allocator is Allocator.random:
            return budget.random(weight.shape[1], torch.tensor(self.widths, device=weight.device), generator)
        if self.allocator is Allocator.greedy:
            return budget.separable(self.errors(weight, curvature.order), curvature.factor)
        return -self.logits(weight, curvature, generator).log_softmax(1)

    def logits(self, weight: Tensor, curvature: Curvature, generator: torch.Generator) -> Tensor:
        """Return the trained network's logits, (in, bit-widths)."""
        order, rows = curvature.order, self.training.rows or len(weight)
        drawn = torch.randperm(len(weight), generator=generator)[:rows].sort().values.to(weight.device)
        hessian, bit_widths = curvature.hessian[order][:, order].float(), torch.tensor(self.widths).to(weight)
        task = Task(self.errors(weight[drawn], order), hessian, bit_widths, float(self.budget))
        edges = None
        if self.allocator is Allocator.gnn:
            edges = graph.adjacency(curvature.factor, self.neighbours)
        nodes = graph.features(weight, curvature.hessian.diagonal()[order], curvature.factor, generator)
        return trained_logits(task, edges, nodes, self.training, generator)[0]

    def errors(self, weight: Tensor, order: Tensor) -> Tensor:
        """Return W − Q_b(W) for each bit-width b, rounded to nearest.

        Args:
            weight: (out, in), columns in `order`.
            order: original index of each column, int64 (in,).

        Returns:
            float32 (bit-widths, out, in), in the order of `weight`'s columns.
        """
        back = order.argsort()
        original = weight[:, back]
        scale, zero = choose(original, self.grid)
        assert zero is not None  # the grid is not symmetric
        position = positions(original, scale, zero)
        column_scale = scale.repeat_interleave(self.grid.group_size, 1)
        errors = []
        for bits in self.widths:
            levels = self.levels(torch.full_like(order, bits))
            rounded = levels.position(levels.nearest(position))
            errors.append(((position - rounded) * column_scale)[:, order])
        return torch.stack(errors)
