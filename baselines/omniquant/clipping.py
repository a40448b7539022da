"""Learnable weight clipping (OmniQuant, arXiv 2308.13137, equation 2): how much of its range a group keeps.

    low = σ(γ_low) · min w,   high = σ(γ_high) · max w        γ of each group, 4 at the start: σ(4) = 0.982

Scale and zero follow from the range as in round to nearest (`formats/rounding.py`); weights beyond it get
the code of its end.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sinq import CompressedWeight, Grid
from sinq.formats.rounding import by_group, centre, choose_within, positions, round_through
from sinq.formats.scalar import QuantizedTensor

START = 4.0
"""Logit of the share of a range that is kept at the start."""


@dataclass(frozen=True, eq=False)
class Clipping:
    """The rounding of one matrix (out, in) to a grid, with ranges that are learned or whole."""

    grid: Grid
    top: int
    """The highest code: 2^bits − 1, or less where the grid is not used up."""
    logits: Tensor | None = None
    """γ of the lower and the upper ends, float32 (2, out, in / group_size); None keeps whole ranges."""

    def learned(self, weight: Tensor) -> Self:
        """Return the start of what is learned for a matrix (out, in)."""
        shape = (2, len(weight), weight.shape[1] // self.grid.group_size)
        return replace(self, logits=torch.full(shape, START, device=weight.device))

    def scales(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scale and zero of each group of a float32 matrix, (out, in / group_size)."""
        groups = by_group(weight, self.grid.group_size)
        low, high = groups.amin(-1), groups.amax(-1)
        if self.logits is not None:
            low, high = low * self.logits[0].sigmoid(), high * self.logits[1].sigmoid()
        return choose_within(low, high, self.grid, self.top)

    def rounded(self, weight: Tensor) -> Tensor:
        """Return a float32 matrix (out, in) after rounding, differentiable by it and by the logits."""
        scale, zero = self.scales(weight)
        offset = torch.full_like(scale, centre(self.grid)) if zero is None else zero
        groups = by_group(weight, self.grid.group_size) / scale[..., None] + offset[..., None]
        codes = round_through(groups).clamp(0, self.top)
        return ((codes - offset[..., None]) * scale[..., None]).reshape(weight.shape)

    def store(self, weight: Tensor) -> CompressedWeight:
        """Return the stored value of a float32 matrix (out, in)."""
        scale, zero = self.scales(weight)
        places = positions(weight, scale, centre(self.grid) if zero is None else zero)
        codes = places.round_().clamp_(0, self.top).to(torch.uint8)
        return QuantizedTensor.store(codes, self.grid, scale, zero)
