"""Modules around a `CompressedWeight` (`experts.py` has the one for fused experts).

`WeightStore` holds the value's tensors as buffers, so that `.to(device)`, `state_dict` and memory counts
see them. A cast such as `model.half()` does not change them: scales are stored numbers, not activations.

`CompressedLinear` computes x Ŵᵀ + b in the dtype of x, by the kernel for the value and the device
(`kernels/product.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from sinq.formats.base import CompressedWeight
from sinq.kernels.product import Choice, kernel_of, product


class WeightStore(nn.Module):
    """A `CompressedWeight` whose tensors are this module's buffers.

    The buffers are the truth. `load_state_dict` and other libraries write to them or put others in; the value
    is then made again from them, with all checks of a new value.
    """

    _value: CompressedWeight

    def __init__(self, value: CompressedWeight) -> None:
        super().__init__()
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move_only, recurse)
        return self

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
