"""Product x Ŵᵀ + b on CUDA from packed codes, which are held once and read once.

There are two ways, by the number of rows of x:

- up to 16, one kernel: a program has some rows of Ŵ, goes along them in blocks of words, and adds up in
  float32. It takes all of the inner dimension, so nothing is added across programs. x is multiplied by the
  column scale as x is loaded, which costs one product per entry of x and not of Ŵ. One row of x is a sum of
  products (`vector.py`); more are a tensor-core product, whose operands have the dtype of x.
- above, Ŵ is written once in the dtype of x, by one launch, and torch multiplies: reading codes again for
  each block of x would cost more.

The operation is `torch.ops.sinq_harness.triton_linear`, opaque to torch.compile, and waits for nothing, so
CUDA graphs can capture it.

Not covered: gradients; column scales per block of rows (2-D tiling); tables of levels. With 2 … 16 rows of
float16, x · col_scale is held in float16: above 65504 it is infinite.
"""

import math

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
    load_codes,
    load_scale,
    load_zero,
)
from sinq.kernels.triton.vector import UNIT, block, multiply_vector, window

ROWS_OF_KERNEL = 16
"""Rows of x up to which the codes are multiplied directly."""
CODES_PER_ROW = 32
"""In-features must be a multiple of this, so that every row of codes begins on a multiple of four bytes."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
        block_rows, block_words, warps = blocks(x.dtype)
        multiply[(triton.cdiv(rows, block_rows),)](
            x.contiguous(), *stored, bias, y, len(x), rows, BATCH=ROWS_OF_KERNEL, **form,
            OPERAND=operand(x.dtype), BLOCK_ROWS=block_rows, BLOCK_WORDS=block_words, num_warps=warps,
        )  # fmt: skip
    return y


@triton_linear.register_fake
def _(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, col_scale: Tensor | None,
    scale_range: Tensor | None, scale_exponent: Tensor | None, bias: Tensor | None,
    rows: int, bits: int, group_size: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], rows)


def blocks(dtype: torch.dtype) -> tuple[int, int, int]:
    """Return the rows and words of Ŵ in a block, and the warps of a program."""
    if dtype == torch.float32:  # no tensor cores: in larger blocks, registers spill
        return 16, 8, 4
    return 32, 16, 4


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
    return not isinstance(multiply, JITFunction)


def _dequantized(stored: tuple[Tensor | None, ...], rows: int, x: Tensor, form: dict[str, int]) -> Tensor:
    matrix = x.new_empty(rows, x.shape[1])
    block_rows, block_words = 32, 16
    grid = (triton.cdiv(rows, block_rows), triton.cdiv(form["WORDS_PER_ROW"], block_words))
    dequantize_block[grid](
        *stored, matrix, rows, **form, BLOCK_ROWS=block_rows, BLOCK_WORDS=block_words, num_warps=4
    )
    return matrix


@triton.jit(do_not_specialize=["batch"])
def multiply(  # type: ignore[no-untyped-def]
    x, codes, scale, zero, col_scale, scale_range, scale_exponent, bias, out, batch, rows,
    BATCH: tl.constexpr, WORDS_PER_ROW: tl.constexpr, GROUP_WORDS: tl.constexpr, BITS: tl.constexpr,
    ZERO: tl.constexpr, OPERAND: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WORDS: tl.constexpr,
):  # fmt: skip
    """Write out (batch, rows) = x (batch, in) · Ŵᵀ + bias for BLOCK_ROWS rows of Ŵ, with batch ≤ BATCH."""
    row, member = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), tl.arange(0, BATCH)
    total = tl.zeros([BATCH, BLOCK_ROWS], tl.float32)
    for start in range(0, WORDS_PER_ROW, BLOCK_WORDS):
        word = start + tl.arange(0, BLOCK_WORDS)
        valid = (row < rows)[:, None] & (word < WORDS_PER_ROW)[None, :]
        entry = row[:, None] * (WORDS_PER_ROW // GROUP_WORDS) + (word // GROUP_WORDS)[None, :]
        code = load_codes(codes, row, word, valid, WORDS_PER_ROW, BITS)
        step = load_scale(scale, scale_range, scale_exponent, entry, valid)
        offset = load_zero(zero, entry, valid, BITS, ZERO)
        column = start * 8 + tl.arange(0, BLOCK_WORDS * 8)
        inside = (member < batch)[:, None] & (column < WORDS_PER_ROW * 8)[None, :]
        entries = tl.load(x + member[:, None] * (WORDS_PER_ROW * 8) + column[None, :], mask=inside, other=0)
        if col_scale is not None:
            factor = tl.load(col_scale + column, mask=column < WORDS_PER_ROW * 8, other=0).to(tl.float32)
            entries = (entries.to(tl.float32) * factor[None, :]).to(x.dtype.element_ty)
        weights = ((code - offset[:, :, None]) * step[:, :, None]).to(x.dtype.element_ty)
        weights = tl.reshape(weights, [BLOCK_ROWS, BLOCK_WORDS * 8])
        total = tl.dot(entries.to(OPERAND), tl.trans(weights.to(OPERAND)), total, input_precision="ieee")
    added = tl.zeros([BLOCK_ROWS], tl.float32)
    if bias is not None:
        added = tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)
    target = member[:, None] * rows + row[None, :]
    tl.store(
        out + target,
        (total + added[None, :]).to(out.dtype.element_ty),
        mask=(member < batch)[:, None] & (row < rows)[None, :],
    )
