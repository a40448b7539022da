"""The product with an additively quantized weight, x Ŵᵀ, and which implementation runs it."""

import torch
from torch import Tensor

from sinq.additive import BYTE, AdditiveTensor
from sinq.kernels.choice import Kernel, chosen


def name(value: AdditiveTensor, device: torch.device) -> str:
    """`AdditiveTensor.kernel`: tables of more than 8 bits would be larger than the matrix."""
    return "cpu" if chosen(device) is Kernel.cpu and value.format.bits_per_codebook <= BYTE else "reference"


def multiply(x: Tensor, value: AdditiveTensor, bias: Tensor | None) -> Tensor:
    """`AdditiveTensor.multiply`.

    Raises:
        ValueError: x has another number of features than the matrix.
    """
    from sinq.kernels import cpu_additive  # Numba takes a second

    return cpu_additive.linear(x, value, bias)
