"""Methods: frozen dataclasses whose fields are their options and whose effect is one function.

    report = SINQ(Grid(bits=4)).compress(model)            # the whole interface
    weight = SINQ(Grid(bits=4)).quantize(matrix, None)     # one matrix, pure

Nearly all methods work one matrix at a time: they are a `LayerMethod` and write only `quantize`. `block_loop.py` does the rest.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sinq.block_loop import compress_layers
from sinq.grid import Grid, Levels
from sinq.half_quadratic import HalfQuadratic, refine
from sinq.layers import Layers
from sinq.progress import Progress, silent
from sinq.report import CompressionReport
from sinq.rounding import assign, choose
from sinq.sinkhorn import Sinkhorn, sinkhorn_scales
from sinq.statistics import Statistic
from sinq.tensor import CompressedWeight, QuantizedTensor


class Method(ABC):
    """A way to make a model smaller."""

    statistic: ClassVar[type[Statistic] | None] = None
    """What the method must know about layer inputs. None: calibration-free."""

    @abstractmethod
    def compress(
        self,
        model: nn.Module,
        calibration: Tensor | None = None,
        *,
        layers: Layers | None = None,
        device: torch.device | str | None = None,
        progress: Progress = silent,
    ) -> CompressionReport:
        """Replace layers of `model`, in place, by compressed ones.

        Args:
            calibration: token ids (windows, seqlen), for methods with a `statistic`.
            layers: which layers; all but the output head by default.
            device: where the work is done, one layer or block at a time; by default where the model is.
            progress: wraps an iterable to show how far it is.

        Raises:
            ValueError: before any work, if the options do not fit the model, naming the layers.
        """


class LayerMethod(Method):
    """A method that compresses one matrix at a time. Subclasses are dataclasses with a field `grid`, or delegate it."""

    grid: Grid

    @abstractmethod
    def quantize(self, weight: Tensor, statistic: Any) -> CompressedWeight:
        """Compress one matrix (out, in), float32. Pure: no device moves, no printing.

        Args:
            statistic: an instance of `self.statistic` that has seen the layer's inputs; None if calibration-free.
        """

    def with_grid(self, grid: Grid) -> Self:
        """This method on another grid (used when a group size is shrunk to fit)."""
        return replace(self, grid=grid)  # type: ignore[type-var]

    def compress(
        self,
        model: nn.Module,
        calibration: Tensor | None = None,
        *,
        layers: Layers | None = None,
        device: torch.device | str | None = None,
        progress: Progress = silent,
    ) -> CompressionReport:
        return compress_layers(model, self, calibration, layers=layers or Layers(), device=device, progress=progress)


@dataclass(frozen=True)
class SINQ(LayerMethod):
    """Sinkhorn-Normalized Quantization (arXiv 2509.22944): balance row and column deviations, then round to nearest."""

    grid: Grid = Grid()
    sinkhorn: Sinkhorn = Sinkhorn()
    kurtosis_gate: float | None = None
    """Round to nearest, without Sinkhorn, matrices whose kurtosis is above this. The paper has no gate; the release has 5."""

    refinement: HalfQuadratic | None = None
    """HQQ's refinement of the zero-points of the normalized matrix."""

    def __post_init__(self) -> None:
        grid = self.grid
        if self.refinement is not None and (grid.symmetric or grid.auxiliary_bits == 8 or grid.levels is not Levels.uniform):
            raise ValueError(
                "refinement moves zero-points by fractions: it needs uniform levels, symmetric=false and auxiliary_bits=16 or 32"
            )
        if self.kurtosis_gate is not None and self.kurtosis_gate <= 0:
            raise ValueError(f"kurtosis_gate={self.kurtosis_gate} is not possible; it must be above 0, or null for no gate")

    def quantize(self, weight: Tensor, statistic: None = None) -> QuantizedTensor:
        if self.kurtosis_gate is not None:
            measured = kurtosis(weight, 0.0 if self.sinkhorn.relative_floors else 1e-6)
            if measured > self.kurtosis_gate:
                return QuantizedTensor.round(weight, self.grid, {"gated_by_kurtosis": measured})
        tile = self.grid.tile((weight.shape[0], weight.shape[1]))
        row_scale, col_scale = sinkhorn_scales(weight, tile, self.sinkhorn)
        normalized = divide(weight, row_scale, col_scale)
        scale, zero = choose(normalized, self.grid)
        if self.refinement is None:
            codes = assign(normalized, scale, zero, self.grid)
        else:
            codes, zero = refine(normalized, scale, self.grid, self.refinement)
        return QuantizedTensor.store(codes, self.grid, scale * row_scale, zero, col_scale=col_scale)


def divide(weight: Tensor, row_scale: Tensor, col_scale: Tensor) -> Tensor:
    """W / (row ⊗ col): row_scale (out, in/group), col_scale (out/tile, in) → (out, in)."""
    by_tile = (weight.reshape(len(col_scale), -1, weight.shape[1]) / col_scale[:, None, :]).reshape(weight.shape[0], row_scale.shape[1], -1)
    return (by_tile / row_scale[..., None]).reshape(weight.shape)


def kurtosis(weight: Tensor, variance_floor: float = 0.0) -> float:
    """E[(w − μ)⁴] / var² over the whole matrix; 3 for a Gaussian. The release floors var at 1e-6, in absolute terms."""
    centred = weight.float() - weight.float().mean()
    variance = centred.square().mean().clamp_min(max(variance_floor, torch.finfo(torch.float32).tiny))
    return ((centred / variance.sqrt()) ** 4).mean().item()
