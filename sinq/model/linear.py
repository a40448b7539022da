"""Modules around a `CompressedWeight` (`experts.py` has the one for fused experts).

`WeightStore` holds the value's tensors as buffers, so that `.to(device)`, `state_dict` and memory counts
see them. A cast such as `model.half()` does not change them: scales are stored numbers, not activations.

Code of a model that reads `layer.weight` instead of calling the layer (Mamba: `dt_proj.weight @ x`) meets the
store. It stands for the dense matrix in functions and operators of torch, and in attributes that only read;
the matrix is decoded each time. It cannot be written to.

`CompressedLinear` computes x Ŵᵀ + b in the dtype of x, by the kernel for the value and the device
(`kernels/product.py`), or as the module of its inputs does (`layer_inputs.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sinq.formats.base import CompressedWeight
from sinq.kernels.product import TRAINED, Choice, core_inputs, is_trained, kernel_of, product
from sinq.model.layer_inputs import LayerInputs
from sinq.model.stored import StoredNumbers

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


class WeightStore(StoredNumbers):
    """A `CompressedWeight` whose tensors are this module's buffers.

    The buffers are the truth. `load_state_dict` and other libraries write to them or put others in; the value
    is then made again from them, with all checks of a new value.


    Args:
        dtype: of the dense matrix, where code of a model reads it.
    """

    _value: CompressedWeight

    def __init__(self, value: CompressedWeight, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.hold(value)

    @property
    def value(self) -> CompressedWeight:
        """The value of the present buffers.

        Raises:
            ValueError: something put buffers in that make no value.
        """
        if not torch.compiler.is_compiling():
            tensors = self._value.state_dict()
            if any(self._buffers.get(name) is not tensor for name, tensor in tensors.items()):
                self._value = self._value.with_tensors(self._tensors())
        return self._value

    def hold(self, value: CompressedWeight) -> None:
        """Hold a value instead of the previous one."""
        tensors = value.state_dict()
        for name in self._buffers.keys() - tensors.keys():
            delattr(self, name)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self._value = value

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._buffers.items() if tensor is not None}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        self.hold(self.value.with_tensors(tensors))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        had_numbers = not any(tensor.is_meta for tensor in self.buffers())
        super()._apply(fn, recurse)
        self.dtype = fn(torch.zeros(1, dtype=self.dtype)).dtype
        if had_numbers:
            self.settle()
        return self

    def settle(self) -> None:
        """Make the value of the present buffers now; a compiler takes the value as it finds it."""
        self.hold(self.value)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        """Load buffers that make a value; others are an error, and are not written over the present ones."""
        found = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        try:
            self._value.with_tensors({name: self._as_stored(name, given) for name, given in found.items()})
        except ValueError as error:
            lists[-1].append(f"{prefix.removesuffix('.')}: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
        self.hold(self._value.with_tensors(self._tensors()))

    def _as_stored(self, name: str, given: Tensor) -> Tensor:
        """Return a tensor for the buffer of a name, on the device and of the kind of float of that buffer."""
        buffer = self.get_buffer(name)
        is_float = given.is_floating_point() and buffer.is_floating_point()
        return given.to(buffer.device, buffer.dtype if is_float else given.dtype)

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

    inputs: LayerInputs | None
    """Module that rounds the inputs and multiplies them; None where they are not rounded."""

    def __init__(self, weight: CompressedWeight | WeightStore, bias: Tensor | None) -> None:
        super().__init__()
        self.register_module("inputs", None)
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
        value, device = self.weight.value, next(self.weight.buffers()).device
        if self.inputs is not None:
            return self.inputs.choice(value.core, device)
        return TRAINED if is_trained(value) else kernel_of(value, device)

    @property
    def kernel(self) -> str:
        """Name of the kernel that multiplies."""
        return self.choice.kernel

    def forward(self, x: Tensor) -> Tensor:
        value = self.weight.value
        if self.inputs is None:
            return product(value, x, self.bias)
        return self.inputs.multiply(value.core, core_inputs(value, x), self.bias)

    def extra_repr(self) -> str:
        bits = self.weight.value.bits_per_weight
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bits_per_weight={bits:.3f}, kernel={self.kernel}"
