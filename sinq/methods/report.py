"""What a compression says about itself: one entry per matrix, and totals."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.algorithms.sinkhorn import imbalance, to_tiles
from sinq.formats.base import CompressedWeight
from sinq.formats.grid import Grid
from sinq.formats.scalar import QuantizedTensor


@dataclass(frozen=True)
class LayerReport:
    """One matrix, before and after."""

    name: str
    out_features: int
    in_features: int
    nbytes: int
    bits_per_weight: float
    relative_error: float
    """‖W − Ŵ‖ / ‖W‖, Frobenius."""
    imbalance_before: float | None
    """Mean over tiles of largest/smallest row or column std of W. None for weights without scales."""
    imbalance_after: float | None
    """The same of W / (scale · col_scale): the matrix as the rounding sees it."""
    seconds: float
    """Time in `quantize`, and the layer's share, by its weights, of the time its block was tuned."""
    group_size: int | None
    notes: dict[str, float]
    """Decisions taken for this matrix."""


@dataclass(frozen=True)
class CompressionReport:
    """All matrices of a model. Times exclude loading and this report's own measurements."""

    layers: tuple[LayerReport, ...] = ()
    skipped: tuple[str, ...] = ()
    """Layers left dense because the grid does not fit them."""
    seconds_statistics: float = 0.0
    seconds_quantize: float = 0.0
    seconds_compile: float = 0.0
    """Before the first layer: compiling kernels, or loading them from the disk."""

    @property
    def decisions(self) -> dict[str, int]:
        """How many layers each kind of decision was taken for."""
        counts = Counter(note for layer in self.layers for note in layer.notes)
        return dict(counts) | ({"skipped": len(self.skipped)} if self.skipped else {})


def describe(
    name: str, weight: Tensor, compressed: CompressedWeight, seconds: float, notes: dict[str, float]
) -> LayerReport:
    """Compare a matrix (out, in) with what it became."""
    weight = weight.float()
    balance = _imbalances(weight, compressed) if isinstance(compressed, QuantizedTensor) else (None, None)
    norm = torch.linalg.vector_norm(weight).item()
    error = torch.linalg.vector_norm(weight - compressed.dequantize()).item()
    return LayerReport(
        name=name,
        out_features=compressed.shape[0],
        in_features=compressed.shape[1],
        nbytes=compressed.nbytes,
        bits_per_weight=compressed.bits_per_weight,
        relative_error=error / norm if norm > 0 else 0.0,
        imbalance_before=balance[0],
        imbalance_after=balance[1],
        seconds=seconds,
        group_size=compressed.group_size,
        notes=dict(compressed.notes) | notes,
    )


def _imbalances(weight: Tensor, compressed: QuantizedTensor) -> tuple[float, float]:
    grid = compressed.grid
    scale = compressed.scale().abs().repeat_interleave(grid.group_size, dim=1)
    col_scale = compressed.col_scale()
    if col_scale is not None:
        scale = scale * col_scale.repeat_interleave(weight.shape[0] // len(col_scale), dim=0)
    return _mean_imbalance(weight, grid), _mean_imbalance(weight / scale, grid)


def _mean_imbalance(matrix: Tensor, grid: Grid) -> float:
    height, width = grid.tile((matrix.shape[0], matrix.shape[1]))
    return imbalance(to_tiles(matrix, (height, width))).mean().item()
