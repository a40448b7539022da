"""Product of rounded inputs with a quantized matrix on CUDA, bit plane by bit plane.

The kernel is that of `integer.py`, with counts (`planes.py`) in place of products of bytes, and has its
limits. It was compiled for sm_80 and sm_90 and run in Triton's interpreter only.
"""

import torch
from torch import Tensor

from sinq.formats.activations import QuantizedActivations
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.triton import integer
from sinq.kernels.triton.integer import refusal

__all__ = ["product", "refusal"]


def product(
    value: QuantizedTensor, x: QuantizedActivations, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return x Ŵᵀ + b (..., out_features) of a dtype; sums and bias are added in float32."""
    return integer.product(value, x, bias, dtype, planes=True)
