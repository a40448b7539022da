"""The product with a compressed weight: x Ŵᵀ + b.

The definition is: dequantize in the dtype of x, then torch's product. Faster versions read what is stored: a value that has one says so
(`CompressedWeight.kernel`). They have no gradient, so where one is asked for, in x or in what is stored, the definition runs.
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
    if kernel == "reference" or (torch.is_grad_enabled() and _differentiated(x, value)):
        return torch.nn.functional.linear(x, value.dequantize(x.dtype), bias)
    return value.multiply(x, bias)


def _differentiated(x: Tensor, value: CompressedWeight) -> bool:
    return x.requires_grad or any(tensor.requires_grad for tensor in value.state_dict().values())


@torch.compiler.assume_constant_result
def name(value: CompressedWeight, device: torch.device) -> str:
    """The kernel that multiplies by a value on a device: reference, cpu, triton …"""
    return value.kernel(device)


@torch.compiler.assume_constant_result
def scalar(value: QuantizedTensor, device: torch.device) -> str:
    """`QuantizedTensor.kernel`."""
    kernel = chosen(device)
    return "reference" if kernel is Kernel.reference or _module(kernel.value).supports(value) else kernel.value


def multiply(x: Tensor, value: QuantizedTensor, bias: Tensor | None) -> Tensor:
    """`QuantizedTensor.multiply`."""
    result: Tensor = _module(scalar(value, x.device)).linear(x, value, bias)
    return result


def _module(kernel: str) -> ModuleType:
    """Imported here, since Numba takes a second, and by statements, which a compiled graph can follow."""
    if kernel == "cpu":
        from sinq.kernels import cpu_linear

        return cpu_linear
    from sinq.kernels import triton_linear

    return triton_linear
