"""Product x Ŵᵀ + b on CUDA from packed codes, which are held once and read once.

There are two ways, by the number of rows of x:

- up to 16, straight from codes: a program has some rows of Ŵ, goes along them in blocks of words, and adds up
  in float32. x is multiplied by the column scale, which costs one product per entry of x and not of Ŵ. One
  row of x is a sum of products (`vector.py`); more are tensor-core products, whose operands have the dtype of
  x (`rows.py`).
- above, Ŵ is written once in the dtype of x, by one launch, and torch multiplies: reading codes again for
  each block of x would cost more.

The operation is `torch.ops.sinq_harness.triton_linear`, opaque to torch.compile, and waits for nothing, so
CUDA graphs can capture it.

Not covered: gradients; column scales per block of rows (2-D tiling); tables of levels. With 2 … 16 rows of
float16, x · col_scale is held in float16: above 65504 it is infinite.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import JITFunction

from sinq.formats.grid import Levels
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.triton.dequantize import (
    ZERO_BYTE,
    ZERO_CONSTANT,
    ZERO_STORED,
    dequantize_block,
)
from sinq.kernels.triton.rows import BLOCK_UNITS, add_up, multiply_rows, splits, spread
from sinq.kernels.triton.vector import UNIT, block, multiply_vector, window

ROWS_OF_KERNEL = 16
"""Rows of x up to which the codes are multiplied directly."""
CODES_PER_ROW = 32
"""In-features must be a multiple of this, so that every row of codes begins on a multiple of four bytes."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROWS_BLOCK, ROWS_WARPS = 16, 1
"""Rows of Ŵ in a block of `multiply_rows`, and the warps of a program."""
SPREAD_UNITS, ADDED = 32, 1024
"""Units of x in a program of `spread`, and numbers in one of `add_up`."""


def refusal(value: QuantizedTensor) -> str | None:
    """Return the reason why `product` cannot take a value, or None where it can."""
    grid, tensors = value.grid, value.tensors
    device = tensors["codes"].device.type
    if device != "cuda" and not _interpreted():
        return f"codes are on {device}, not on CUDA"
    if grid.levels is not Levels.uniform:
        return f"levels={grid.levels.name}: only uniform levels are supported"
    if value.shape[1] % CODES_PER_ROW or grid.group_size % 8:
        return (
            f"in_features={value.shape[1]} must be a multiple of {CODES_PER_ROW}, "
            f"and group_size={grid.group_size} of 8"
        )
    if "col_scale" in tensors and len(tensors["col_scale"]) > 1:
        return f"tiling={grid.tiling}: column scales per block of rows are not supported"
    return None


def product(value: QuantizedTensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Ŵᵀ + bias. No gradient flows through it.

    Args:
        value: (out_features, in_features), on the device of x.
        x: (..., in_features), float32, float16 or bfloat16.
        bias: (out_features,), or None.

    Returns:
        (..., out_features) in the dtype of x.

    Raises:
        ValueError: `refusal` returns a reason for the value, or the dtype or the number of features of x is
            invalid.
    """
    reason = refusal(value)
    if reason is not None:
        raise ValueError(f"the triton kernel cannot multiply by this weight: {reason}")
    if x.dtype not in DTYPES or x.shape[-1] != value.shape[1]:
        raise ValueError(
            f"x is {x.dtype} with {x.shape[-1]} features; "
            f"it must be float32, float16 or bfloat16 with {value.shape[1]}"
        )
    tensors, rows, grid = value.tensors, value.shape[0], value.grid
    optional = [tensors.get(name) for name in ("zero", "col_scale", "scale_range", "scale_exponent")]
    stored = (tensors["codes"], tensors["scale"], *optional)
    y = triton_linear(x.reshape(-1, value.shape[1]), *stored, bias, rows, grid.bits, grid.group_size)
    return y.reshape(*x.shape[:-1], rows)


@torch.library.custom_op("sinq_harness::triton_linear", mutates_args=())
def triton_linear(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, col_scale: Tensor | None,
    scale_range: Tensor | None, scale_exponent: Tensor | None, bias: Tensor | None,
    rows: int, bits: int, group_size: int,
) -> Tensor:  # fmt: skip
    """Multiply x (batch, in) by the stored tensors of a `QuantizedTensor` (rows, in); see `product`."""
    kind = ZERO_CONSTANT if zero is None else ZERO_BYTE if zero.dtype is torch.int8 else ZERO_STORED
    stored = (codes.view(torch.int32), scale, zero, col_scale, scale_range, scale_exponent)
    form = {
        "WORDS_PER_ROW": x.shape[1] // 8,
        "GROUP_WORDS": group_size // 8,
        "BITS": bits,
        "ZERO": kind.value,
    }
    if len(x) > ROWS_OF_KERNEL:
        matrix = _dequantized(stored, rows, x, form)
        return torch.nn.functional.linear(x, matrix, None if bias is None else bias.to(x.dtype))
    y = x.new_empty(len(x), rows)
    if len(x) == 1 and rows:
        form, warps = vector_form((rows, x.shape[1]), bits, group_size, kind.value)
        multiply_vector[(triton.cdiv(rows, form["BLOCK_ROWS"]),)](
            x.contiguous(), *stored, bias, y, rows, **form, num_warps=warps
        )
    elif len(x) and rows:
        _write_few_rows(x.contiguous(), stored, bias, y, rows_form(rows, x, bits, group_size, kind.value))
    return y


@triton_linear.register_fake
def _(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, col_scale: Tensor | None,
    scale_range: Tensor | None, scale_exponent: Tensor | None, bias: Tensor | None,
    rows: int, bits: int, group_size: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], rows)


def _write_few_rows(
    x: Tensor, stored: tuple[Tensor | None, ...], bias: Tensor | None, y: Tensor, form: dict[str, Any]
) -> None:
    """Write y (batch, rows) for 2 to `ROWS_OF_KERNEL` rows of x."""
    codes, scale, zero, col_scale, *ranges = stored
    (batch, rows), units, splits = y.shape, form["UNITS"], form["SPLITS"]
    inputs = torch.empty_like(x)
    spread[(triton.cdiv(units, SPREAD_UNITS), batch)](x, col_scale, inputs, UNITS=units, BLOCK=SPREAD_UNITS)
    partial = y if splits == 1 else x.new_empty(splits, batch, rows, dtype=torch.float32)
    multiply_rows[(triton.cdiv(rows, form["BLOCK_ROWS"]), splits)](
        inputs, codes, scale, zero, *ranges, bias if splits == 1 else None, partial, batch, rows,
        **form, num_warps=ROWS_WARPS,
    )  # fmt: skip
    if splits > 1:
        numbers = batch * rows
        add_up[(triton.cdiv(numbers, ADDED),)](partial, bias, y, numbers, rows, SPLITS=splits, BLOCK=ADDED)


def rows_form(rows: int, x: Tensor, bits: int, group_size: int, zero: int) -> dict[str, Any]:
    """Return the constants that `multiply_rows` is compiled for; `rows` are those of Ŵ."""
    unit = UNIT.value
    units = x.shape[1] // unit
    return {
        "BATCH": ROWS_OF_KERNEL,
        "UNITS": units,
        "GROUP": group_size,
        "CHUNK": math.gcd(group_size, unit),
        "BITS": bits,
        "WINDOW": window(bits)[0],
        "ZERO": zero,
        "OPERAND": operand(x.dtype),
        "SPLITS": splits(rows, units, ROWS_BLOCK),
        "BLOCK_ROWS": ROWS_BLOCK,
        "BLOCK_UNITS": BLOCK_UNITS,
    }


def vector_form(shape: tuple[int, int], bits: int, group_size: int, zero: int) -> tuple[dict[str, int], int]:
    """Return the constants and warps that `multiply_vector` is compiled for; `shape` is (out, in) of Ŵ."""
    unit, (codes, part) = UNIT.value, window(bits)
    units = shape[1] // unit
    rows, warps = block(shape[0], units, bits)
    form = {
        "UNITS": units,
        "GROUP": group_size,
        "CHUNK": math.gcd(group_size, unit),
        "BITS": bits,
        "WINDOW": codes,
        "PART": part,
    }
    return form | {"ZERO": zero, "BLOCK_ROWS": rows, "BLOCK_UNITS": 32 * warps}, warps


def operand(dtype: torch.dtype) -> tl.dtype:
    """Return the type of the operands of `tl.dot`, which is the type of x.

    Triton's interpreter multiplies the bit patterns of bfloat16, so it gets float32.
    """
    kinds = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    return tl.float32 if _interpreted() else kinds[dtype]


def _interpreted() -> bool:
    return not isinstance(multiply_rows, JITFunction)


def _dequantized(stored: tuple[Tensor | None, ...], rows: int, x: Tensor, form: dict[str, int]) -> Tensor:
    matrix = x.new_empty(rows, x.shape[1])
    block_rows, block_words = 32, 16
    grid = (triton.cdiv(rows, block_rows), triton.cdiv(form["WORDS_PER_ROW"], block_words))
    dequantize_block[grid](
        *stored, matrix, rows, **form, BLOCK_ROWS=block_rows, BLOCK_WORDS=block_words, num_warps=4
    )
    return matrix
