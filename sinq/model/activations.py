"""Rounding of the inputs of compressed layers, in the space in which their codes see them.

Where a column scale is the same for all rows (SINQ's t, AWQ's 1/c) it belongs to the input: x·t meets the
codes. A rotation likewise. So x is transformed first (`CompressedWeight.core_inputs`), then rounded, then
multiplied by the rest (`CompressedWeight.core`).

This is a simulation: the product is taken of the values that the codes stand for, in the dtype of x.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sinq.formats.activations import ActivationFormat
from sinq.formats.checks import require_finite, require_names, require_tensor
from sinq.model.stored import StoredNumbers


class ActivationQuantizer(StoredNumbers):
    """A module that rounds activations, (..., in_features).

    With a static scale, the buffers `scale` and `zero` (if not symmetric) are float32 numbers, 1 and 0 until
    `settle` sets them from what was seen.
    """

    def __init__(self, format: ActivationFormat) -> None:
        super().__init__()
        self.format = format
        self._seen: tuple[Tensor, Tensor] | None = None
        self.watches = False
        """True while the module notes extremes and rounds nothing."""
        self.rounds = True
        """False while inputs pass as they are."""
        if format.static:
            self.register_buffer("scale", torch.ones(()))
            if not format.symmetric:
                self.register_buffer("zero", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x after rounding, in its dtype. The gradient passes as if nothing were rounded."""
        if self.watches:
            self._note(*self.format.extremes(x.detach()))
            return x
        if not self.rounds:
            return x
        rounded = self.format.rounded(x.detach(), *self._scales(x.detach()))
        return x + (rounded - x).detach() if x.requires_grad else rounded

    def settle(self) -> None:
        """Set the static scale from the extremes that were seen.

        Raises:
            ValueError: nothing was seen, or something that is not finite.
        """
        if self._seen is None or not all(extreme.isfinite() for extreme in self._seen):
            raise ValueError("no inputs were seen" if self._seen is None else "inputs are not finite")
        scale, zero = self.format.scales(*self._seen)
        self.take({"scale": scale} | ({} if self.format.symmetric else {"zero": zero}))
        self._seen = None

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        require_names("static activations", dict(tensors), tuple(self._buffers))
        for name, tensor in tensors.items():
            require_tensor(name, tensor, torch.float32, ())
        require_finite(dict(tensors))
        if "scale" in tensors and not tensors["scale"] > 0:
            raise ValueError(f"scale is {tensors['scale'].item():g}; it must be above 0")
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def _scales(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.format.static:
            return self.format.scales(*self.format.extremes(x))
        scale = self.get_buffer("scale")
        return scale, torch.zeros_like(scale) if self.format.symmetric else self.get_buffer("zero")

    def _note(self, low: Tensor, high: Tensor) -> None:
        if self._seen is not None:
            low, high = torch.minimum(low, self._seen[0]), torch.maximum(high, self._seen[1])
        self._seen = low, high

    def extra_repr(self) -> str:
        return self.format.label
