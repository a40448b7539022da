"""Units of a block in the order in which they are kept, and what the kept ones say about the others.

Neurons are ranked by a pivoted QR of what enters `down`, each column times the norm of its column of `down`.
Heads are ranked in two stages: a pivoted QR of one column per head (its output for all tokens, flattened)
finds the order; an unpivoted QR of all columns in that order finds how the kept heads' channels mix into the
others'. With grouped-query attention a head is a kv head with all its query heads.
"""

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.stat.decomposition import interpolation, pivoted_triangle, tails, triangle
from sinq.model.blocks import HiddenStates
from sinq.model.slicing import spread
from sinq.model.units import Units, matrix_of


class Selection(enum.Enum):
    """Orders in which units are kept; how many of a block are is decided by pivots in any case."""

    pivots = "pivots"
    magnitude = "magnitude"
    """Norm of all weights of a unit, largest first."""
    random = "random"


class Correction(enum.Enum):
    """Changes of the next matrix, which reads the kept units."""

    interpolation = "interpolation"
    """W Tᵀ, T of the sketch."""
    refit = "refit"
    """The least-squares solution on all tokens: T without a sketch."""
    none = "none"
    """The columns of the kept units, unchanged."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Units of one kind of a block, on the CPU."""

    order: Tensor
    """Indices (units,), the first to keep first."""
    width: int
    """Columns of a unit."""
    scores: Tensor
    """(units,), falling, of the units in the order of pivots."""
    errors: Tensor
    """Error of the output for each number of kept units in the order of pivots, (units + 1,)."""
    factor: HiddenStates
    """R of the columns in order, on disk: a single tensor."""
    scale: Tensor
    """Factor of each column in R, (columns,), in order."""

    @property
    def columns(self) -> Tensor:
        return spread(self.order, self.width)

    def mixing(self, kept: int, correction: Correction) -> Tensor:
        """Return T (kept · width, columns), columns in order: all columns from those of the kept units."""
        if correction is Correction.none:
            return torch.eye(len(self.scale), dtype=torch.float64)[: kept * self.width]
        plain = interpolation(self.factor[0], kept * self.width)
        return self.scale[: len(plain), None] * plain / self.scale


def rank_neurons(
    units: Units, seen: Tensor, refit: Tensor | None, order: Tensor | None, weigh: bool
) -> Ranking:
    """Rank the neurons of a block.

    Args:
        seen: what enters `down`, float64 (rows, neurons).
        refit: the same of all tokens, where the correction is to come of it.
        order: an order besides that of pivots.
        weigh: multiply each column by the norm of its column of `down`.
    """
    down = matrix_of(units.layer(units.names.down)).to(seen)
    norms = torch.linalg.vector_norm(down, dim=0) if weigh else torch.ones_like(seen[0])
    pivoted, pivots = pivoted_triangle(seen * norms)
    scores, errors = pivoted.diagonal().abs(), tails(pivoted)
    if order is None and refit is None:
        factor, order, scale = pivoted, pivots, torch.where(norms > 0, norms, 1.0)
    else:
        order = pivots if order is None else order.to(seen.device)
        factor, scale = triangle((seen if refit is None else refit)[:, order]), torch.ones_like(norms)
    return _ranking(order, 1, scores, errors, factor, scale[order])


def rank_heads(units: Units, seen: Tensor, refit: Tensor | None, order: Tensor | None) -> Ranking:
    """Rank the heads of a block; see `rank_neurons`.

    Args:
        seen: what enters the output matrix, float64 (rows, heads · width).
    """
    count = units.counts.kv_heads
    width = seen.shape[1] // count
    by_head = seen.reshape(-1, count, width).transpose(1, 2).reshape(-1, count)
    _, pivots = pivoted_triangle(by_head)
    output = matrix_of(units.layer(units.names.output)).to(seen)
    factor = triangle(seen[:, spread(pivots, width)])
    errors = _errors(factor, output[:, spread(pivots, width)], width)
    order = pivots if order is None else order.to(seen.device)
    if refit is not None or not torch.equal(order, pivots):
        factor = triangle((seen if refit is None else refit)[:, spread(order, width)])
    return _ranking(order, width, errors[:-1], errors, factor, torch.ones_like(factor[0]))


def _errors(factor: Tensor, output: Tensor, width: int) -> Tensor:
    """Return ‖R22 W_oᵀ‖ for each number of kept heads, 0 to all; the columns of R and W_o are in order."""
    starts = range(0, len(factor) + 1, width)
    return torch.stack(
        [torch.linalg.matrix_norm(factor[start:, start:] @ output[:, start:].T) for start in starts]
    )


def _ranking(
    order: Tensor, width: int, scores: Tensor, errors: Tensor, factor: Tensor, scale: Tensor
) -> Ranking:
    kept = HiddenStates()
    kept.append(factor)
    return Ranking(order.cpu(), width, scores.cpu(), errors.cpu(), kept, scale.cpu())


def other_order(
    units: Units, selection: Selection, generator: torch.Generator
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return orders of heads and of neurons by magnitude or at random; None for both with pivots."""
    if selection is Selection.pivots:
        return None, None
    counts = units.counts
    if selection is Selection.random:
        draws = (torch.randperm(each, generator=generator) for each in (counts.kv_heads, counts.neurons))
        return next(draws), next(draws)
    return tuple(each.argsort(descending=True, stable=True).cpu() for each in _squares(units))  # type: ignore[return-value]


def _squares(units: Units) -> tuple[Tensor, Tensor]:
    """Return the sums of squares of the weights of each head and of each neuron."""
    names, heads = units.names, units.counts.kv_heads
    inputs = [matrix_of(units.layer(name)).double().square().sum(1) for name in names.inputs]
    parts = inputs[0].chunk(3) if units.fused else inputs
    output = matrix_of(units.layer(names.output)).double().square().sum(0)
    by_head = sum((part.reshape(heads, -1).sum(1) for part in parts), output.reshape(heads, -1).sum(1))
    down = matrix_of(units.layer(names.down)).double().square().sum(0)
    return by_head, sum((matrix_of(units.layer(up)).double().square().sum(1) for up in names.up), down)
