"""Products with a compressed weight, x Ŵᵀ + b, dispatched by the type of the value.

The definition dequantizes in the dtype of x and leaves the rest to torch. Faster versions read the stored
tensors. `kernel_of` chooses by the type of the value and the device, and gives the reasons why nothing faster
runs. It is a `functools.singledispatch`, so that a new type of value is added without a change here:

    @kernel_of.register
    def _(value: Mine, device: torch.device) -> Choice:
        return Choice("mine", multiply=my_product)

A value of an unregistered type is dequantized.

Fast versions compute no gradient. Where x or the bias asks for one, the fast version computes the product
all the same, and the definition its gradient. So a model computes the same numbers inside and outside of
`torch.no_grad()`, whatever its dense parameters ask for. Only where a stored tensor is trained (it asks for a
gradient) does the definition compute the product too.

torch multiplies by sparse matrices. Compared with a loop in Numba and with `embedding_bag`, on one core of a
processor and for one row of x, torch is as fast as the loop (about 20 µs for 1 % of 1536×576, beside 75 µs
for the 3-bit rest); `embedding_bag` takes twice as long.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, singledispatch
from typing import Any

import torch
from torch import Tensor

from sinq.formats.additive import AdditiveTensor
from sinq.formats.base import CompressedWeight
from sinq.formats.rotation import Rotated
from sinq.formats.scalar import QuantizedTensor
from sinq.formats.sparse_outliers import SparseOutliers
from sinq.kernels.dispatch import Kernel, chosen, imported, reason_for_reference
from sinq.kernels.rotation import rotated

Multiply = Callable[[Any, Tensor, Tensor | None], Tensor]
"""A function from a value (out, in), x (..., in) and a bias (out,) or None to x Ŵᵀ + b, (..., out).

The bias and the result have the dtype of x.
"""


def dequantized(value: CompressedWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by the dequantized matrix: the definition of `product`, which can be differentiated."""
    return torch.nn.functional.linear(x, value.dequantize(x.dtype), bias)


@dataclass(frozen=True)
class Choice:
    """The implementation that multiplies by a value."""

    kernel: str = Kernel.reference.value
    """Name of the kernel: reference, cpu, cpu+csr, triton …"""
    refusals: tuple[str, ...] = ()
    """Reasons why nothing faster runs, one for each implementation that could not."""
    multiply: Multiply = dequantized
    """Function at the top of a module, where `torch.compile` finds it."""


TRAINED = Choice(refusals=("a stored tensor asks for a gradient, which only the definition has",))
"""The choice for a value that is trained."""


def product(value: CompressedWeight, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Ŵᵀ + b by the implementation that `kernel_of` chooses.

    Args:
        value: Ŵ, (out_features, in_features).
        x: (..., in_features).
        bias: (out_features,), or None for 0.

    Returns:
        (..., out_features) in the dtype of x.

    Raises:
        ValueError: the requested kernel cannot run on the device of x.
    """
    bias = None if bias is None else bias.to(x.dtype)
    multiply = _multiply(value, x.device)
    if not torch.is_grad_enabled() or multiply is dequantized:
        return multiply(value, x, bias)
    if is_trained(value):
        return dequantized(value, x, bias)
    if x.requires_grad or (bias is not None and bias.requires_grad):
        result: Tensor = _WithGradient.apply(x, bias, value, multiply)
        return result
    return multiply(value, x, bias)


def is_trained(value: CompressedWeight) -> bool:
    """Return True where a stored tensor asks for a gradient, which only the definition has."""
    return any(tensor.requires_grad for tensor in value.state_dict().values())


class _WithGradient(torch.autograd.Function):
    """A fast product whose gradient is the definition's; the matrix is decoded only when that is computed."""

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, value: CompressedWeight, multiply: Multiply) -> Tensor:
        return multiply(value, x, bias)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        context.value = inputs[2]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        for_x, for_bias = None, None
        if context.needs_input_grad[0]:
            for_x = gradient @ context.value.dequantize(gradient.dtype)
        if context.needs_input_grad[1]:
            for_bias = gradient.flatten(0, -2).sum(0)
        return for_x, for_bias, None, None


def _multiply(value: CompressedWeight, device: torch.device) -> Multiply:
    if not torch.compiler.is_compiling():
        return kernel_of(value, device).multiply
    module, _, name = _address(value, device).partition(":")
    multiply: Multiply = getattr(sys.modules[module], name)
    return multiply


def _address(value: CompressedWeight, device: torch.device) -> str:
    """Return "module:name" of `Choice.multiply`: a compiled graph has strings as constants, no functions."""
    multiply = kernel_of(value, device).multiply
    return f"{multiply.__module__}:{multiply.__name__}"


# All that torch.compiler.assume_constant_result does, which imports the compiler: as long as importing torch.
_address._dynamo_marked_constant = True  # type: ignore[attr-defined]


@singledispatch
def kernel_of(value: CompressedWeight, device: torch.device) -> Choice:
    """Choose the implementation that multiplies by a value on a device.

    Raises:
        ValueError: the requested kernel cannot run on the device.
    """
    return kernel_of_device(value, device, {})


def kernel_of_device(value: CompressedWeight, device: torch.device, modules: dict[Kernel, str]) -> Choice:
    """Choose the module for the kernel of the device, or the definition where that module refuses the value.

    Args:
        modules: by kernel, the name of a module with two functions: `product(value, x, bias)`, and
            `refusal(value)`, which returns the reason why `product` cannot take a value, or None where it
            can.

    Raises:
        ValueError: the requested kernel cannot run on the device.
    """
    kernel = chosen(device)
    if kernel is Kernel.reference:
        return Choice(refusals=(reason_for_reference(device),))
    if kernel not in modules:
        return Choice(refusals=(f"{type(value).__name__} has no {kernel.value} kernel",))
    stored_on = next(iter(value.state_dict().values())).device
    if stored_on.type != device.type:
        return Choice(refusals=(f"the weight is on {stored_on}, not on {device}",))
    reason = imported(f"{modules[kernel]}:refusal")(value)
    if reason is not None:
        return Choice(refusals=(reason,))
    return Choice(kernel.value, multiply=imported(f"{modules[kernel]}:product"))


SCALAR = {Kernel.cpu: "sinq.kernels.cpu.linear", Kernel.triton: "sinq.kernels.triton.linear"}
ADDITIVE = {Kernel.cpu: "sinq.kernels.cpu.additive"}


@kernel_of.register
def _(value: QuantizedTensor, device: torch.device) -> Choice:
    return kernel_of_device(value, device, SCALAR)


@kernel_of.register
def _(value: AdditiveTensor, device: torch.device) -> Choice:
    return kernel_of_device(value, device, ADDITIVE)


@kernel_of.register
def _(value: Rotated, device: torch.device) -> Choice:
    inner = kernel_of(value.inner, device)
    multiply = dequantized if inner.multiply is dequantized else _with_rotated_inputs
    return Choice(inner.kernel, inner.refusals, multiply)


def _with_rotated_inputs(value: Rotated, x: Tensor, bias: Tensor | None) -> Tensor:
    return product(value.inner, rotated(x, value.rotation), bias)


def core_inputs(value: CompressedWeight, x: Tensor) -> Tensor:
    """Return `value.core_inputs(x)`, with a rotation by the kernel for the device of x."""
    if isinstance(value, Rotated):
        return core_inputs(value.inner, rotated(x, value.rotation))
    return value.core_inputs(x)


@kernel_of.register
def _(value: SparseOutliers, device: torch.device) -> Choice:
    inner = kernel_of(value.inner, device)
    if inner.multiply is dequantized:
        return inner
    return Choice(f"{inner.kernel}+csr", inner.refusals, _with_outliers)


def _with_outliers(value: SparseOutliers, x: Tensor, bias: Tensor | None) -> Tensor:
    outliers = sparse_product(x, value.values, value.columns, value.row_starts)
    return product(value.inner, x, bias) + outliers.to(x.dtype)


def sparse_product(x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor) -> Tensor:
    """Return x Sᵀ, with S in compressed rows (see `sinq/formats/sparse_outliers.py`), without a gradient.

    Args:
        x: (..., in_features).
        values: (entries,), any floating dtype.
        columns: (entries,), any integer dtype.
        row_starts: int32 (out_features + 1,).

    Returns:
        float32 (..., out_features).
    """
    run = _sparse_operator if torch.compiler.is_compiling() else _sparse_product
    result: Tensor = run(x, values, columns, row_starts)
    return result


def _sparse_product(x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor) -> Tensor:
    _silence_beta_warning()
    rows, shape = x.detach().reshape(-1, x.shape[-1]).float(), (len(row_starts) - 1, x.shape[-1])
    sparse = torch.sparse_csr_tensor(row_starts, columns.int(), values.float(), shape, check_invariants=False)
    return (sparse @ rows.T).T.reshape(*x.shape[:-1], shape[0]).contiguous()


@cache
def _silence_beta_warning() -> None:
    """Trigger and ignore torch's one warning that sparse rows are in beta: users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


_sparse_operator = torch.library.custom_op("sinq::sparse_product", _sparse_product, mutates_args=())
"""`_sparse_product` as one node of a compiled graph, which supports no sparse tensors."""


@_sparse_operator.register_fake
def _(x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(row_starts) - 1, dtype=torch.float32)
