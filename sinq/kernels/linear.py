"""The product with a compressed weight: x Ŵᵀ + b.

The definition is: dequantize in the dtype of x, then torch's product. Faster versions read packed codes. They have no gradient, so
where one is asked for (`x.requires_grad`, outside of `no_grad`) the definition runs.
"""

from types import ModuleType

import torch
from torch import Tensor

from sinq.kernels.choice import Kernel, chosen
from sinq.tensor import CompressedWeight, QuantizedTensor


def linear(x: Tensor, value: CompressedWeight, bias: Tensor | None = None) -> Tensor:
    """(..., in_features) → (..., out_features), in the dtype of x, by the kernel that `name` tells.

    Raises:
        ValueError: the kernel asked for cannot run on the device.
    """
    kernel = name(value, x.device)
    bias = None if bias is None else bias.to(x.dtype)
    if kernel == "reference" or (x.requires_grad and torch.is_grad_enabled()):
        return torch.nn.functional.linear(x, value.dequantize(x.dtype), bias)
    result: Tensor = _module(kernel).linear(x, value, bias)
    return result


@torch.compiler.assume_constant_result
def name(value: CompressedWeight, device: torch.device) -> str:
    """The kernel that multiplies by a value on a device: reference, cpu or triton."""
    kernel = chosen(device)
    if kernel is Kernel.reference or not isinstance(value, QuantizedTensor) or _module(kernel.value).supports(value):
        return "reference"
    return kernel.value


def _module(kernel: str) -> ModuleType:
    """Imported here, since Numba takes a second, and by statements, which a compiled graph can follow."""
    if kernel == "cpu":
        from sinq.kernels import cpu_linear

        return cpu_linear
    from sinq.kernels import triton_linear

    return triton_linear
