"""The seam between the inputs of a compressed layer and its codes: a module that rounds and multiplies.

A `CompressedLinear` hands its inputs over in the space that the codes see (`CompressedWeight.core_inputs`),
with the core of its weight. What is done to them, and in which numbers they are multiplied, is the module's:
codes (`activations.py`), spikes (`spikes.py`).

`Work` counts what a product does with the inputs that it is given. Energy is not among it, and nothing
here stands for seconds.
"""

from abc import abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sinq.formats.base import CompressedWeight
from sinq.kernels.product import Choice
from sinq.model.stored import StoredNumbers


@dataclass(frozen=True)
class Work:
    """Operations of a product of inputs (tokens, in) and a matrix (out, in), counted on its inputs."""

    multiplications: int
    """tokens · out · in: products of a weight and an input that the result stands for."""
    inputs: int
    """tokens · in."""
    steps: int
    """Steps of all inputs together: those of a neuron, or the bit planes of a code; 1 of any other."""
    spikes: int = 0
    """Binary spikes that were fired, or bits that are set in the planes of codes."""
    synaptic_operations: int = 0
    """Additions that spikes cause: of a weight in each row, or of a bit in each plane of each row."""
    bit_operations: int = 0
    """Products of one bit by one bit, with bit planes: planes of weights · planes of inputs · products."""

    def __add__(self, other: "Work") -> "Work":
        names = [field.name for field in fields(self)]
        return Work(*(getattr(self, name) + getattr(other, name) for name in names))


class LayerInputs(StoredNumbers):
    """A module in a `CompressedLinear` that rounds its inputs and multiplies them."""

    rounds = True
    """False while inputs pass as they are."""

    @abstractmethod
    def through(self, x: Tensor) -> Tensor:
        """Return x (..., in) after rounding, in its dtype, to be trained through.

        The gradient passes the step of rounding alone: what sets a range moves its scale, and what is cut
        moves nothing.
        """

    @abstractmethod
    def multiply(self, core: CompressedWeight, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return rounded x (..., in) times the matrix, plus a bias, (..., out) in the dtype of x."""

    @abstractmethod
    def choice(self, core: CompressedWeight, device: torch.device) -> Choice:
        """Return the kernel that `multiply` runs on a device, and the reasons against faster ones."""

    @abstractmethod
    def work(self, core: CompressedWeight, x: Tensor) -> Work:
        """Return the operations of `multiply` for x (..., in)."""


def work_of(core: CompressedWeight, x: Tensor) -> Work:
    """Return the work of a product in which every input is multiplied once."""
    return Work(x.numel() * core.shape[0], x.numel(), x.numel())
