"""Product of rounded inputs and a quantized matrix on a processor, in integers, from packed codes.

A few tokens go through `codes.multiply`, which reads each code once and never writes the matrix; it
multiplies numbers of 16 bits, so that codes minus their zero are whole numbers to it. More tokens go through
`integers.multiply_rounded`, which unpacks 32 rows at a time to bytes. Nothing is prepared or kept beside the
value.

`torch._int_mm` is not used. It is right on any shape (a test), and faster up to hundreds of tokens where
bytes are there already and all of a row shares a scale (docs/bench.md). Stored codes are no such bytes: they
are unsigned, or packed, so that signed ones would be kept beside them, 8 bits for each weight more; and with
groups it needs one call for each, whose sums are written to memory.
"""

from typing import Any

import torch
from torch import Tensor

from sinq.formats.activations import QuantizedActivations
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.cpu import tiles
from sinq.kernels.cpu.codes import multiply
from sinq.kernels.cpu.integers import multiply_rounded
from sinq.kernels.cpu.linear import run
from sinq.kernels.cpu.openmp import parallel

FEW = 4
"""Tokens up to which codes are not unpacked to bytes."""


def refusal(value: QuantizedTensor, group_size: int) -> str | None:
    """Return the reason why `product` cannot take a value with inputs in groups, or None where it can."""
    smaller = min(value.grid.group_size, group_size)
    if smaller % 8:
        name = "group_size" if smaller == value.grid.group_size else "activation.group_size"
        return f"integers: {name}={smaller} is no multiple of 8"
    if value.grid.auxiliary_bits == 8 and value.is_trained:
        return "integers: scales of 8 bits are read with ranges in float16; these are being trained"
    return None if parallel() is not None else "integers: torch has no OpenMP here"


def product(
    value: QuantizedTensor, x: QuantizedActivations, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return x Ŵᵀ + b (..., out_features) of a dtype; sums and bias are added in float32."""
    grid = value.grid
    sizes = (value.shape[0], grid.bits, grid.group_size)
    arguments: tuple[Any, ...] = (x.codes, x.scale, x.zero, *stored_tensors(value), *sizes)
    result: Tensor = _operator(*arguments) if torch.compiler.is_compiling() else _linear(*arguments)
    return (result if bias is None else result + bias.float()).to(dtype)


def _linear(
    inputs: Tensor,
    input_scale: Tensor,
    input_zero: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_range: Tensor | None,
    scale_exponent: Tensor | None,
    rows: int,
    bits: int,
    group_size: int,
) -> Tensor:
    columns, groups = inputs.shape[-1], input_scale.shape[-1]
    tokens = inputs.numel() // columns
    outputs = torch.empty(*inputs.shape[:-1], rows)
    few = tokens <= FEW and columns // groups >= group_size
    x, *shared = (
        _centred(inputs, input_scale, input_zero) if few else _padded(inputs, input_scale, input_zero)
    )
    numbers = [bits, rows, columns, group_size, rows, tokens, 8 * scale.element_size(), 0, rows]
    stored = addresses(codes, scale, zero, None, scale_range, scale_exponent, x, outputs)
    fields = [*numbers, *stored, columns // groups, *addresses(*shared), int(tiles.permitted())]
    if tokens:
        run(multiply() if few else multiply_rounded(), fields, tokens * rows * columns)
    return outputs


def _centred(inputs: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor, None]:
    """Return codes minus zeros, float32, with their scales."""
    if zero is None:
        return inputs.float(), scale, None
    return (inputs.unflatten(-1, (scale.shape[-1], -1)) - zero[..., None]).reshape(inputs.shape), scale, None


def _padded(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return tensors (..., n) as (tokens, n), with more rows, so that tokens fill whole tiles."""
    flat = [None if tensor is None else tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    return [
        each if each is None or not -len(each) % tiles.TOKENS
        else torch.nn.functional.pad(each, (0, 0, 0, -len(each) % tiles.TOKENS))
        for each in flat
    ]  # fmt: skip


def stored_tensors(value: QuantizedTensor) -> tuple[Tensor | None, ...]:
    """Return codes, scale, zero, and range and exponent of scales; a value here has no column scales."""
    tensors = value.tensors
    optional = (tensors.get(name) for name in ("zero", "scale_range", "scale_exponent"))
    return tensors["codes"], tensors["scale"], *optional


def addresses(*tensors: Tensor | None) -> list[int]:
    """Return where tensors begin in memory; 0 for None."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


_operator = torch.library.custom_op("sinq::cpu_integer_linear", _linear, mutates_args=())
"""`_linear` as one node of a compiled graph."""


@_operator.register_fake
def result_like(inputs: Tensor, *arguments: object) -> Tensor:
    """Return the result's shape (..., rows) and dtype; `arguments` end with rows, bits and group size."""
    rows = arguments[-3]
    assert isinstance(rows, int | torch.SymInt)
    return inputs.new_empty(*inputs.shape[:-1], rows, dtype=torch.float32)
