"""Product of rounded inputs with a quantized matrix on CUDA, in integers, from packed codes.

A program has some tokens and some rows, and goes along both in blocks of columns that share all scales. In a
block, bytes are multiplied by bytes on tensor cores and summed in int32, exactly; then scales and zeros are
applied, and blocks are added in float32 (`sinq/kernels/cpu/integers.py` has the formula). Codes of the weight
are centred on 0, so that 8 bits are signed bytes too. The same kernel counts bit planes (`planes.py`).

The operation is `torch.ops.sinq_harness.triton_integer`, opaque to torch.compile.

Not covered: groups, of the weight or of the inputs, that are no multiple of 32, the least depth of the
hardware's product of bytes. It was compiled for sm_80 and sm_90 and run in Triton's interpreter only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import JITFunction

from sinq.formats.activations import QuantizedActivations
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.triton.dequantize import (
    ZERO_BYTE,
    ZERO_CONSTANT,
    ZERO_STORED,
    load_scale,
    load_whole_codes,
    load_zero,
)
from sinq.kernels.triton.planes import count_planes

DEPTH = 32
"""Columns of the smallest product of bytes."""
DEEPEST = 128
"""Columns of a block, at most."""


def refusal(value: QuantizedTensor, group_size: int) -> str | None:
    """Return the reason why `product` cannot take a value with inputs in groups, or None where it can."""
    device = value.tensors["codes"].device.type
    if device != "cuda" and isinstance(multiply_integers, JITFunction):
        return f"integers: codes are on {device}, not on CUDA"
    smaller = min(value.grid.group_size, group_size)
    if smaller % DEPTH:
        name = "group_size" if smaller == value.grid.group_size else "activation.group_size"
        return f"integers: {name}={smaller} is no multiple of {DEPTH}"
    return None


def product(
    value: QuantizedTensor,
    x: QuantizedActivations,
    bias: Tensor | None,
    dtype: torch.dtype,
    planes: bool = False,
) -> Tensor:
    """Return x Ŵᵀ + b (..., out_features) of a dtype; sums and bias are added in float32.

    Args:
        planes: count bits, instead of multiplying bytes.
    """
    tensors, rows = value.tensors, value.shape[0]
    optional = [tensors.get(name) for name in ("zero", "scale_range", "scale_exponent")]
    stored = (tensors["codes"], tensors["scale"], *optional)
    inputs = [
        None if each is None else each.reshape(-1, each.shape[-1]) for each in (x.codes, x.scale, x.zero)
    ]
    sizes = (rows, value.grid.bits, value.grid.group_size, x.bits if planes else 0)
    y = triton_integer(*inputs, *stored, bias, *sizes, dtype)
    return y.reshape(*x.codes.shape[:-1], rows)


@torch.library.custom_op("sinq_harness::triton_integer", mutates_args=())
def triton_integer(
    x: Tensor, input_scale: Tensor, input_zero: Tensor | None, codes: Tensor, scale: Tensor,
    zero: Tensor | None, scale_range: Tensor | None, scale_exponent: Tensor | None, bias: Tensor | None,
    rows: int, bits: int, group_size: int, planes: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Multiply codes of inputs (tokens, in) by the stored tensors of a `QuantizedTensor` (rows, in).

    Args:
        planes: bits of the inputs, to be counted; 0 to multiply bytes.
    """
    kind = ZERO_CONSTANT if zero is None else ZERO_BYTE if zero.dtype is torch.int8 else ZERO_STORED
    y = x.new_empty(len(x), rows, dtype=dtype)
    if y.numel():
        form, warps = blocks(len(x), x.shape[1], group_size, x.shape[1] // input_scale.shape[1], planes)
        grid = (triton.cdiv(len(x), form["BLOCK_TOKENS"]), triton.cdiv(rows, form["BLOCK_ROWS"]))
        multiply_integers[grid](
            x.contiguous(), input_scale.contiguous(), None if input_zero is None else input_zero.contiguous(),
            codes.view(torch.int32), scale, zero, scale_range, scale_exponent, bias, y, len(x), rows,
            **form, BITS=bits, ZERO=kind.value, num_warps=warps,
        )  # fmt: skip
    return y


@triton_integer.register_fake
def _(
    x: Tensor, input_scale: Tensor, input_zero: Tensor | None, codes: Tensor, scale: Tensor,
    zero: Tensor | None, scale_range: Tensor | None, scale_exponent: Tensor | None, bias: Tensor | None,
    rows: int, bits: int, group_size: int, planes: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], rows, dtype=dtype)


def blocks(
    tokens: int, columns: int, group: int, input_group: int, planes: int = 0
) -> tuple[dict[str, int], int]:
    """Return the constants of the kernel for a shape, and the warps of a program."""
    smaller = min(group, input_group)
    depth = DEPTH if planes else next(size for size in (DEEPEST, 64, DEPTH) if smaller % size == 0)
    many = tokens > 16
    sizes = {"BLOCK_TOKENS": 64 if many else 16, "BLOCK_ROWS": 64 if many else 32, "BLOCK": depth}
    return {"COLUMNS": columns, "GROUP": group, "INPUT_GROUP": input_group, "PLANES": planes} | sizes, 4


@triton.jit(do_not_specialize=["tokens"])
def multiply_integers(  # type: ignore[no-untyped-def]
    x, input_scale, input_zero, codes, scale, zero, scale_range, scale_exponent, bias, out, tokens, rows,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, INPUT_GROUP: tl.constexpr, BITS: tl.constexpr,
    ZERO: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PLANES: tl.constexpr,
):  # fmt: skip
    """Write out (tokens, rows) = x (tokens, COLUMNS) · Ŵᵀ + bias for BLOCK_TOKENS tokens, BLOCK_ROWS rows."""
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    seen, valid = token < tokens, row < rows
    centre: tl.constexpr = 2 ** (BITS - 1)
    total = tl.zeros([BLOCK_TOKENS, BLOCK_ROWS], tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        word = start // 8 + tl.arange(0, BLOCK // 8)
        code = load_whole_codes(codes, row, word, valid[:, None] & (word >= 0)[None, :], COLUMNS // 8, BITS)
        weights = tl.reshape((code - centre).to(tl.int8), [BLOCK_ROWS, BLOCK])
        column = start + tl.arange(0, BLOCK)
        position = token.to(tl.int64)[:, None] * COLUMNS + column[None, :]
        entries = tl.load(x + position, mask=seen[:, None], other=0)
        entry = row * (COLUMNS // GROUP) + start // GROUP
        shared = token * (COLUMNS // INPUT_GROUP) + start // INPUT_GROUP
        if PLANES:
            exact = count_planes(entries, weights, PLANES, BITS, BLOCK).to(tl.float32)
        else:
            exact = tl.dot(entries, tl.trans(weights), out_dtype=tl.int32).to(tl.float32)
        sums = tl.sum(entries.to(tl.int32), axis=1).to(tl.float32)
        if input_zero is not None:
            offset = tl.load(input_zero + shared, mask=seen, other=0)
            exact -= offset[:, None] * tl.sum(weights.to(tl.int32), axis=1).to(tl.float32)[None, :]
            sums -= offset * BLOCK
        exact -= sums[:, None] * (load_zero(zero, entry, valid, BITS, ZERO) - centre)[None, :]
        unit = tl.load(input_scale + shared, mask=seen, other=0)
        total += exact * unit[:, None] * load_scale(scale, scale_range, scale_exponent, entry, valid)[None, :]
    if bias is not None:
        total += tl.load(bias + row, mask=valid, other=0).to(tl.float32)[None, :]
    target = token.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(out + target, total.to(out.dtype.element_ty), mask=seen[:, None] & valid[None, :])
