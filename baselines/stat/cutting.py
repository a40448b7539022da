"""Removal of a block's heads or neurons, with the correction of the matrix that reads them."""

from torch import Tensor, nn

from baselines.stat.ranking import Correction, Ranking
from sinq.model.slicing import kept_groups, slice_block
from sinq.model.units import Units, matrix_of, replace_matrix


def cut_neurons(model: nn.Module, units: Units, ranking: Ranking, kept: int, correction: Correction) -> float:
    """Keep the first neurons of a ranking; return the largest entry of T."""
    counts, down = units.counts, units.names.down
    if kept == counts.neurons:
        return 0.0
    index, matrix, largest = _corrected(matrix_of(units.layer(down)), ranking, kept, correction)
    slice_block(model, units, kept_groups(units, range(counts.kv_heads), index))
    replace_matrix(units.layer(down), matrix)
    return largest


def cut_heads(model: nn.Module, units: Units, ranking: Ranking, kept: int, correction: Correction) -> float:
    """Keep the first heads of a ranking, with their keys and values; return the largest entry of T."""
    counts, output = units.counts, units.names.output
    if kept == counts.kv_heads:
        return 0.0
    index, matrix, largest = _corrected(matrix_of(units.layer(output)), ranking, kept, correction)
    slice_block(model, units, kept_groups(units, index, range(counts.neurons)))
    replace_matrix(units.layer(output), matrix)
    return largest


def _corrected(
    weight: Tensor, ranking: Ranking, kept: int, correction: Correction
) -> tuple[Tensor, Tensor, float]:
    """Return the kept units in rising order, W Tᵀ with their columns, and the largest entry of T."""
    mixing = ranking.mixing(kept, correction)
    matrix = weight.to(mixing)[:, ranking.columns] @ mixing.T
    index, rising = ranking.order[:kept].sort()
    matrix = matrix.unflatten(1, (kept, ranking.width))[:, rising].flatten(1)
    others = mixing[:, kept * ranking.width :]
    return index, matrix, float(others.abs().max()) if others.numel() else 0.0
