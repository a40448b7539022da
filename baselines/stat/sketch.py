"""Sketches of a tall matrix: few random combinations of its rows, which keep lengths in its column space.

A sketch S A of A (tokens, columns) has E[(S A)ᵀ S A] = AᵀA, so norms and R of its QR can be compared with
those of A itself.
"""

import enum

import torch
from torch import Tensor

from baselines.stat.decomposition import triangle
from sinq.calibration.sites import SiteKind

BUFFERED = 4
"""Rows held before they are reduced to R, in multiples of the columns."""


class SketchKind(enum.Enum):
    """Kinds of sketches."""

    gaussian = "gaussian"
    """Each window is multiplied by a Gaussian matrix of its own (the released code for OPT)."""
    count = "count"
    """Each token is added to one of the rows, with a random sign."""
    none = "none"
    """All tokens: the rows are R of a QR."""


class Sketch:
    """An observer of the inputs of a layer that keeps a sketch of them.

    Args:
        rows: of the sketch. A text of no more tokens is kept whole.
        tokens: of a window.
        windows: number of windows.

    Raises:
        ValueError: an input is not finite.
    """

    kind = SiteKind.inputs

    def __init__(
        self, layer: str, kind: SketchKind, rows: int, tokens: int, windows: int, generator: torch.Generator
    ) -> None:
        self.layer = layer
        self._kind = SketchKind.none if rows >= tokens * windows else kind
        self._total, self._each = rows, -(-rows // windows)
        self._generator = generator
        self._parts: list[Tensor] = []

    def update(self, inputs: Tensor) -> None:
        """Add the inputs of some tokens, (…, columns)."""
        if not torch.isfinite(inputs).all():
            raise ValueError(
                f"{self.layer}: the inputs on the calibration text have NaN or Inf: the model's activations"
                f" overflow; try model.dtype=float32 (it computes in {inputs.dtype})"
            )
        added = inputs.reshape(-1, inputs.shape[-1]).double()
        match self._kind:
            case SketchKind.gaussian:
                self._parts.append(self._draw(self._each, len(added)).to(added) @ added / self._each**0.5)
            case SketchKind.count:
                self._count(added)
            case SketchKind.none:
                self._parts.append(added)
                if sum(map(len, self._parts)) > (BUFFERED + 1) * added.shape[1]:
                    self._parts = [triangle(torch.cat(self._parts))]

    def _draw(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=self._generator, dtype=torch.float64)

    def _count(self, added: Tensor) -> None:
        if not self._parts:
            self._parts = [added.new_zeros(self._total, added.shape[1])]
        rows = torch.randint(self._total, (len(added),), generator=self._generator)
        signs = 2.0 * torch.randint(2, (len(added), 1), generator=self._generator) - 1
        self._parts[0].index_add_(0, rows.to(added.device), signs.to(added) * added)

    def matrix(self) -> Tensor:
        """Return the sketch, float64 (rows, columns)."""
        return torch.cat(self._parts)
