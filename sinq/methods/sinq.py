"""SINQ: Sinkhorn-Normalized Quantization (arXiv 2509.22944).

The iteration of `algorithms/sinkhorn.py` finds a scale per row and group, and a scale per column of each
tile. The balanced matrix is then rounded to nearest, or with HQQ's refinement of the zero-points
(`algorithms/half_quadratic.py`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinq.algorithms.half_quadratic import HalfQuadratic
from sinq.algorithms.sinkhorn import Sinkhorn
from sinq.common.errors import NotApplicable
from sinq.common.options import check, number
from sinq.formats.grid import Grid, Levels
from sinq.kernels import sinkhorn_scales
from sinq.methods.scalar import Groups, Normalized
from sinq.methods.shared_columns import SharesColumns


@dataclass(frozen=True)
class SINQ(SharesColumns):
    """Sinkhorn-Normalized Quantization: balance row and column deviations, then round to nearest.

    Source: arXiv 2509.22944.

    Raises:
        NotApplicable: `refinement` on a grid without fractional zero-points.
        ValueError: `kurtosis_gate` is not above 0.
    """

    name: ClassVar[str] = "sinq"

    grid: Grid = Grid()
    sinkhorn: Sinkhorn = Sinkhorn()
    kurtosis_gate: float | None = None
    """Kurtosis above which a matrix is rounded without Sinkhorn. The paper has no gate; the release has 5."""

    refinement: HalfQuadratic | None = None
    """HQQ's refinement of the zero-points of the normalized matrix."""

    shared_columns: bool = False
    """Find one t for matrices with the same inputs, and for query heads of one kv head, so that the layer
    before can take it (`shared_columns.py`). The paper has a t for each matrix."""

    def __post_init__(self) -> None:
        check(self, kurtosis_gate=number(above=0))
        grid = self.grid
        if self.refinement is not None and (
            grid.symmetric or grid.auxiliary_bits == 8 or grid.levels is not Levels.uniform
        ):
            raise NotApplicable(
                "refinement moves zero-points by fractions:"
                " it needs uniform levels, symmetric=false and auxiliary_bits=16 or 32"
            )
        self.require_shareable()
        if self.shared_columns and not (self.refinement is None and self.kurtosis_gate is None):
            raise NotApplicable("shared_columns=true needs kurtosis_gate=null and refinement=null")

    def columns(self, weight: Tensor, tile: tuple[int, int]) -> Tensor:
        """Return Sinkhorn's column scales of a matrix (out, in), (out / tile rows, in)."""
        return sinkhorn_scales(weight, tile, self.sinkhorn)[1]

    def normalize(self, weight: Tensor) -> Normalized:
        self.refuse_alone()
        if self.kurtosis_gate is not None:
            measured = kurtosis(weight, 0.0 if self.sinkhorn.relative_floors else 1e-6)
            if measured > self.kurtosis_gate:
                return Normalized(weight, notes={"gated_by_kurtosis": measured})
        tile = self.grid.tile((weight.shape[0], weight.shape[1]))
        row_scale, col_scale = sinkhorn_scales(weight, tile, self.sinkhorn)
        return Normalized(weight, row_scale, col_scale)

    def only_rounds(self, normalized: Normalized) -> bool:
        return self.refinement is None or normalized.row_scale is None  # a gated matrix is only rounded

    def choose(self, normalized: Normalized) -> Groups:
        if self.refinement is None or self.only_rounds(normalized):
            return normalized.rounded(self.grid)
        return normalized.refined(self.grid, self.refinement)


def kurtosis(weight: Tensor, variance_floor: float = 0.0) -> float:
    """Return E[(w − μ)⁴] / var² over the whole matrix; 3 for a Gaussian.

    Args:
        variance_floor: least var; the release has 1e-6, in absolute terms.
    """
    centred = weight.float() - weight.float().mean()
    variance = centred.square().mean().clamp_min(max(variance_floor, torch.finfo(torch.float32).tiny))
    return ((centred / variance.sqrt()) ** 4).mean().item()
