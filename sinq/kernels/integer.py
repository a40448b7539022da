"""Products of rounded inputs with a compressed weight, in integers: x Ŵᵀ + b with x and Ŵ both as codes.

The definition dequantizes both. A fast version multiplies bytes, or bits (`Products`), adds up in int32, and
applies scales once for each group: the sums are exact, where floats round. `integer_kernel_of` chooses by the
type of the value and the device, as `kernel_of` does for inputs that are not rounded; where no version takes
a pair of weight and inputs, it says why.

Weights have 2 to 8 bits, on a uniform grid; fewer than 8 are unpacked on the way. Zeros of the weight may be
any number. Groups of the weight and of the inputs may differ where one size divides the other: scales are
then constant over the smaller. Not covered: gradients, and everything that is no single matrix of codes:
tables of levels, sparse outliers, codebooks, columns of several widths, column scales. A column scale that
all rows share belongs to the inputs (`CompressedWeight.core_inputs`), before they are rounded.
"""

import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from sinq.formats.activations import QuantizedActivations
from sinq.formats.base import CompressedWeight
from sinq.formats.grid import Levels
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.dispatch import Kernel, chosen, imported, reason_for_reference
from sinq.kernels.product import TRAINED, is_trained

IntegerMultiply = Callable[[Any, QuantizedActivations, Tensor | None, torch.dtype], Tensor]
"""A function from a value (out, in), inputs (..., in) and a bias (out,) or None to x Ŵᵀ + b of a dtype."""


class Products(enum.Enum):
    """The numbers that rounded inputs are multiplied in."""

    simulated = "simulated"
    """Floats: the values that codes stand for, in the model's number format."""
    integer = "integer"
    """Codes, summed in int32, where a kernel can; else as simulated, with the reason."""
    bitplanes = "bitplanes"
    """Bits of codes, counted: the same integers, at a cost of bits of weights times bits of inputs."""


LARGEST_GROUP = 2**15
"""Largest group: 255 · 255 times so many is below 2³¹."""


def dequantized(
    value: CompressedWeight, x: QuantizedActivations, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Multiply the matrices that weight and inputs stand for: the definition of `integer_product`."""
    bias = None if bias is None else bias.to(dtype)
    return torch.nn.functional.linear(x.dequantize(dtype), value.dequantize(dtype), bias)


@dataclass(frozen=True)
class IntegerChoice:
    """The implementation that multiplies a value by rounded inputs."""

    kernel: str = Kernel.reference.value
    """Name of the kernel: cpu_int8, triton_bitplanes …; reference where none takes the pair."""
    refusal: str | None = None
    """Reason why no kernel takes the pair, or None where one does."""
    multiply: IntegerMultiply = dequantized
    """Function at the top of a module."""


def integer_product(
    value: CompressedWeight,
    x: QuantizedActivations,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    group_size: int | None = None,
    products: Products = Products.integer,
) -> Tensor:
    """Return x Ŵᵀ + b by the implementation that `integer_kernel_of` chooses. No gradient flows through it.

    Args:
        value: Ŵ, (out_features, in_features).
        x: (..., in_features).
        bias: (out_features,), or None for 0.
        dtype: of the result.
        group_size: of x, 0 for all, where it is known without x: a compiler has symbols for sizes of x.
        products: bytes or bits.

    Returns:
        (..., out_features).

    Raises:
        ValueError: x has another number of features than the matrix, or the requested kernel cannot run on
            the device of x.
    """
    if x.codes.shape[-1] != value.shape[1]:
        raise ValueError(f"x has {x.codes.shape[-1]} features; the matrix takes {value.shape[1]}")
    size = x.group_size if group_size is None else group_size
    module, _, name = _address(value, size, x.codes.device, products).partition(":")
    multiply: IntegerMultiply = getattr(sys.modules[module], name)
    return multiply(value, x, bias, dtype)


def multiplies_integers(
    value: CompressedWeight, group_size: int, device: torch.device, products: Products = Products.integer
) -> bool:
    """Return True where a kernel takes the pair of a weight and inputs; see `integer_kernel_of`."""
    return integer_kernel_of(value, group_size, device, products).refusal is None


def _address(value: CompressedWeight, group_size: int, device: torch.device, products: Products) -> str:
    """Return "module:name" of `IntegerChoice.multiply`, a constant of a compiled graph."""
    multiply = integer_kernel_of(value, group_size, device, products).multiply
    return f"{multiply.__module__}:{multiply.__name__}"


# As in product.py.
multiplies_integers._dynamo_marked_constant = True  # type: ignore[attr-defined]
_address._dynamo_marked_constant = True  # type: ignore[attr-defined]


@singledispatch
def integer_kernel_of(
    value: CompressedWeight, group_size: int, device: torch.device, products: Products = Products.integer
) -> IntegerChoice:
    """Choose the implementation that multiplies a value by rounded inputs on a device.

    Args:
        group_size: consecutive inputs of a token that share a scale; 0 for all.
        products: bytes or bits.

    Raises:
        ValueError: the requested kernel cannot run on the device.
    """
    return IntegerChoice(refusal=f"{type(value).__name__} has no product of integers")


INTEGER = {Kernel.cpu: "sinq.kernels.cpu.integer", Kernel.triton: "sinq.kernels.triton.integer"}
BITPLANES = {Kernel.cpu: "sinq.kernels.cpu.bitplanes", Kernel.triton: "sinq.kernels.triton.bitplanes"}
MODULES = {Products.integer: ("int8", INTEGER), Products.bitplanes: ("bitplanes", BITPLANES)}
"""For each way to multiply, the end of a kernel's name, and its module by device."""


@integer_kernel_of.register
def _(
    value: QuantizedTensor, group_size: int, device: torch.device, products: Products = Products.integer
) -> IntegerChoice:
    kernel, (name, modules) = chosen(device), MODULES[products]
    reason = _refusal(value, group_size or value.shape[1])
    if kernel is Kernel.reference:
        reason = f"integers: {reason_for_reference(device)}"
    elif (stored_on := value.tensors["codes"].device).type != device.type:
        reason = f"integers: the weight is on {stored_on}, not on {device}"
    if reason is None:
        reason = imported(f"{modules[kernel]}:refusal")(value, group_size or value.shape[1])
    if reason is not None:
        return IntegerChoice(refusal=reason)
    return IntegerChoice(f"{kernel.value}_{name}", multiply=imported(f"{modules[kernel]}:product"))


def _refusal(value: QuantizedTensor, group_size: int) -> str | None:
    """Return the reason why no kernel multiplies a value by inputs in groups, or None."""
    grid = value.grid
    if is_trained(value):
        return TRAINED.refusals[0]
    if grid.levels is not Levels.uniform:
        return f"integers: levels={grid.levels.name} is a table, whose values are not whole"
    if "col_scale" in value.tensors:
        return (
            "integers: column scales stand between codes and inputs; only one for all rows can be taken out"
        )
    smaller, larger = sorted((grid.group_size, group_size))
    if larger % smaller:
        return (
            f"integers: group_size={grid.group_size} and activation.group_size={group_size} do not nest;"
            " one must divide the other"
        )
    if smaller > LARGEST_GROUP:
        return (
            f"integers: sums of {smaller} products may pass 2^31; groups of {LARGEST_GROUP} and fewer do not"
        )
    return None
