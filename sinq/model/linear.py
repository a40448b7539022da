"""Modules around a `CompressedWeight`, and how they get into a model.

`WeightStore` holds the value's tensors as buffers, so that `.to(device)`, `state_dict` and memory counts see them. A cast such as
`model.half()` does not touch them: scales are numbers on disk, not activations.

`CompressedLinear` computes x Ŵᵀ + b in the dtype of x, by the kernel that suits the value and the device (`kernels/product.py`).

`CompressedExperts` stands in for one fused 3-D parameter of a mixture of experts (transformers ≥ 5 keeps all experts of a layer in
one tensor). Model code reads that parameter as an attribute, so two hooks on its owner put the dequantized tensor there for
the length of one forward pass: it works with any experts implementation, and only one layer's experts are dense at a time.
"""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from sinq.formats.base import CompressedWeight
from sinq.kernels.product import Choice, kernel_of, product


class WeightStore(nn.Module):
    """A `CompressedWeight` whose tensors are this module's buffers."""

    def __init__(self, value: CompressedWeight) -> None:
        super().__init__()
        self.hold(value)

    def hold(self, value: CompressedWeight) -> None:
        """Take a value in, in the place of the one before."""
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
        """The implementation that multiplies, now and here, and why nothing faster does."""
        return kernel_of(self.weight.value, next(self.weight.buffers()).device)

    @property
    def kernel(self) -> str:
        """Name of the implementation that multiplies."""
        return self.choice.kernel

    def forward(self, x: Tensor) -> Tensor:
        return product(self.weight.value, x, self.bias)

    def extra_repr(self) -> str:
        bits = self.weight.value.bits_per_weight
        return f"in_features={self.in_features}, out_features={self.out_features}, bits_per_weight={bits:.3f}, kernel={self.kernel}"
