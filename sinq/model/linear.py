"""Modules around a `CompressedWeight` (`experts.py` has the one for fused experts).

`WeightStore` holds the value's tensors as buffers, so that `.to(device)`, `state_dict` and memory counts
see them. A cast such as `model.half()` does not change them: scales are stored numbers, not activations.

Code of a model that reads `layer.weight` instead of calling the layer (Mamba: `dt_proj.weight @ x`) meets the
store. It stands for the dense matrix in functions and operators of torch, and in attributes that only read;
the matrix is decoded each time. It cannot be written to.

`CompressedLinear` computes x Ŵᵀ + b in the dtype of x, by the kernel for the value and the device
(`kernels/product.py`).
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sinq.formats.base import CompressedWeight
from sinq.kernels.product import Choice, kernel_of, product

READ_ATTRIBUTES = (
    "T",
    "mT",
    "data",
    "device",
    "ndim",
    "size",
    "t",
    "transpose",
    "numel",
    "dim",
    "unsqueeze",
    "view",
)
"""Attributes of the dense matrix that code of a model may read."""


def _decoded(item: Any) -> Any:
    return item.dense() if isinstance(item, WeightStore) else item


class WeightStore(nn.Module):
    """A `CompressedWeight` whose tensors are this module's buffers.

    Args:
        dtype: of the dense matrix, where code of a model reads it.
    """

    def __init__(self, value: CompressedWeight, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
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
        self.dtype = fn(torch.zeros(1, dtype=self.dtype)).dtype
        return self

    def dense(self) -> Tensor:
        """Return the matrix (out, in), decoded now."""
        return self.value.dequantize(self.dtype)

    def __getattr__(self, name: str) -> Any:
        if name in READ_ATTRIBUTES:
            return getattr(self.dense(), name)
        return super().__getattr__(name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(_decoded, args), **tree_map(_decoded, kwargs or {}))

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.dense() @ other

    def __mul__(self, other: Tensor | float) -> Tensor:
        return self.dense() * other

    def __getitem__(self, index: Any) -> Tensor:
        return self.dense()[index]

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape


class CompressedLinear(nn.Module):
    """A linear layer, (..., in_features) → (..., out_features), with a compressed weight.

    Args:
        weight: the value, or a store that several layers share.
    """

    def __init__(self, weight: CompressedWeight | WeightStore, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, WeightStore) else WeightStore(weight)
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
