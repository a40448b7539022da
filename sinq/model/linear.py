"""Modules around a `CompressedWeight` (`experts.py` has the one for fused experts).

`WeightStore` holds the value's tensors as buffers, so that `.to(device)`, `state_dict` and memory counts
see them. A cast such as `model.half()` does not change them: scales are stored numbers, not activations.

`CompressedLinear` computes x Ŵᵀ + b in the dtype of x, by the kernel for the value and the device
(`kernels/product.py`).
"""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from sinq.formats.base import CompressedWeight
from sinq.kernels.product import TRAINED, Choice, is_trained, kernel_of, product


class WeightStore(nn.Module):
    """A `CompressedWeight` whose tensors are this module's buffers."""

    def __init__(self, value: CompressedWeight) -> None:
        super().__init__()
        self.hold(value)

    def hold(self, value: CompressedWeight) -> None:
        """Hold a value instead of the previous one."""
        self.value = value
        for name, tensor in value.state_dict().items():
            self.register_buffer(name, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move_only, recurse)
        self.value = self.value.with_tensors(dict(self.named_buffers()))
        return self

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape


class CompressedLinear(nn.Module):
    """A linear layer, (..., in_features) → (..., out_features), with a compressed weight."""

    def __init__(self, weight: CompressedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = WeightStore(weight)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def choice(self) -> Choice:
        """The kernel that multiplies on the present device, and the reasons against faster ones."""
        if is_trained(self.weight.value):
            return TRAINED
        return kernel_of(self.weight.value, next(self.weight.buffers()).device)

    @property
    def kernel(self) -> str:
        """Name of the kernel that multiplies."""
        return self.choice.kernel

    def forward(self, x: Tensor) -> Tensor:
        return product(self.weight.value, x, self.bias)

    def extra_repr(self) -> str:
        bits = self.weight.value.bits_per_weight
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bits_per_weight={bits:.3f}, kernel={self.kernel}"
