"""Product x Ŵᵀ on a processor, from packed codes.

Few rows of x (decoding) go through `codes.multiply`, which never writes the matrix and rounds x to 16 bits.
Many rows (prefill) are multiplied by torch with pieces of the matrix, widened to float32 and used while they
lie in cache. Sums of pieces are float32 for every dtype of x: on processors without instructions for bfloat16
its product is slower than that of float32, and never more exact. MKL, which torch has for float32, leaves
AVX-512 unused on processors of AMD; there oneDNN multiplies, in float32 too and twice as fast.

Nothing is prepared or kept beside the value: codes, scales and zeros are read from the stored tensors, so a
layer that was moved, copied or loaded needs no preparation. Not covered: tables of levels, and groups that
are no multiple of 8.
"""

from array import array
from typing import Any

import torch
from llvmlite.binding import get_host_cpu_features, get_host_cpu_name
from torch import Tensor

from sinq.formats.grid import Levels
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.cpu import llvm_vectors
from sinq.kernels.cpu.arguments import BITS, COLUMNS, FIRST, LAST, ROWS, TILE, UNROUNDED, Y
from sinq.kernels.cpu.codes import Kernel, multiply, widen
from sinq.kernels.cpu.openmp import parallel

FEW = 16
"""Rows of x up to which the matrix is not written."""
PIECE = 1 << 20
"""Weights widened at a time: 4 MiB. Products by a quarter of it take a tenth longer."""
BY_ONEDNN = (
    get_host_cpu_name().startswith("znver")
    and get_host_cpu_features().get("avx512f", False)
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not public: torch may drop it
)
"""True where oneDNN multiplies by pieces, False for MKL."""
SMALL = 1 << 18
"""Multiplications below which a second thread does not pay."""
OPTIONAL = ("zero", "col_scale", "scale_range", "scale_exponent")


def refusal(value: QuantizedTensor) -> str | None:
    """Return the reason why `product` cannot take a value, or None where it can."""
    grid = value.grid
    if grid.levels is not Levels.uniform:
        return f"levels={grid.levels.name} is a table"
    if grid.group_size % 8:
        return f"group_size={grid.group_size} is no multiple of 8"
    if grid.auxiliary_bits == 8 and value.is_trained:
        return "scales of 8 bits are read with ranges in float16; these are being trained"
    return None if parallel() is not None else "torch has no OpenMP here"


def product(value: QuantizedTensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Ŵᵀ + b. No gradient flows through it.

    Args:
        value: Ŵ, (out_features, in_features).
        x: (..., in_features).
        bias: (out_features,), or None for 0.

    Returns:
        (..., out_features) in the dtype of x.

    Raises:
        ValueError: x has another number of features than the matrix.
    """
    tensors, grid = value.tensors, value.grid
    optional = [tensors.get(name) for name in OPTIONAL]
    sizes = (value.shape[0], grid.bits, grid.group_size)
    arguments: tuple[Any, ...] = (x, tensors["codes"], tensors["scale"], *optional, *sizes)
    result: Tensor = _operator(*arguments) if torch.compiler.is_compiling() else _linear(*arguments)
    return result if bias is None else result + bias


def _linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    col_scale: Tensor | None,
    scale_range: Tensor | None,
    scale_exponent: Tensor | None,
    rows: int,
    bits: int,
    group_size: int,
) -> Tensor:
    columns = x.shape[-1]
    if columns != scale.shape[1] * group_size:
        raise ValueError(f"x has {columns} features; the matrix takes {scale.shape[1] * group_size}")
    inputs = x.detach().float().contiguous()
    tokens = inputs.numel() // columns
    tile = rows if col_scale is None else rows // len(col_scale)
    numbers = [bits, rows, columns, group_size, tile, tokens, 8 * scale.element_size(), 0, rows]
    addresses = [
        0 if tensor is None else tensor.data_ptr()
        for tensor in (codes, scale, zero, col_scale, scale_range, scale_exponent)
    ]
    outputs = torch.empty(*x.shape[:-1], rows)
    fields = numbers + addresses + [inputs.data_ptr(), outputs.data_ptr()] + UNROUNDED
    if tokens <= FEW:
        run(multiply(), fields, tokens * rows * columns)
    else:
        _by_pieces(inputs.reshape(tokens, columns), col_scale, fields, outputs.view(tokens, rows))
    return outputs.to(x.dtype)


def _by_pieces(inputs: Tensor, col_scale: Tensor | None, fields: list[int], outputs: Tensor) -> None:
    rows, columns, tile = fields[ROWS], fields[COLUMNS], fields[TILE]
    step = min(tile, max(1, PIECE // columns))
    arranged, last_tile = inputs, -1
    block = llvm_vectors.codes_per_lane(fields[BITS]) * llvm_vectors.WIDTH
    piece = torch.empty(step, columns + -columns % block)
    for first in range(0, rows, tile):
        for start in range(first, first + tile, step):
            if start // tile != last_tile:
                last_tile = start // tile
                arranged = _arrange(inputs, None if col_scale is None else col_scale[last_tile], fields[BITS])
            end = min(start + step, first + tile)
            fields[FIRST], fields[LAST], fields[Y] = start, end, piece.data_ptr()
            run(widen(), fields, (end - start) * columns)
            _multiply_dense(arranged, piece[: end - start], outputs[:, start:end])


def _multiply_dense(x: Tensor, matrix: Tensor, out: Tensor) -> None:
    """Write x · matrixᵀ, float32 (tokens, rows), to `out`."""
    if BY_ONEDNN:
        out.copy_(torch.ops.mkldnn._linear_pointwise(x, matrix, None, "none", [], ""))
    else:
        torch.mm(x, matrix.T, out=out)


def _arrange(x: Tensor, col_scale: Tensor | None, bits: int) -> Tensor:
    """Return x · col_scale (tokens, columns), divided by factors, laid out as `codes.widen` writes a matrix.

    The result is (tokens, blocks · codes · lanes).
    """
    each = llvm_vectors.codes_per_lane(bits)
    missing = -x.shape[1] % (each * llvm_vectors.WIDTH)
    padded = torch.nn.functional.pad(x, (0, missing)) if missing else x
    columns = torch.arange(padded.shape[1]).view(-1, llvm_vectors.WIDTH, each).transpose(1, 2).flatten()
    factors = torch.tensor([llvm_vectors.factor(code, bits) for code in range(each)])
    scale = torch.ones(x.shape[1]) if col_scale is None else col_scale.float()
    scale = torch.nn.functional.pad(scale, (0, missing)).view(-1, each) / factors
    return padded.index_select(1, columns).mul_(scale.flatten()[columns])


def run(kernel: Kernel, fields: list[int], work: int) -> None:
    """Run a C function of a job on torch's threads, on one where the multiplications are few."""
    start, packed = parallel(), array("q", fields)
    assert start is not None  # `refusal` returns a reason otherwise
    start(kernel.address, packed.buffer_info()[0], 1 if work < SMALL else torch.get_num_threads())


_operator = torch.library.custom_op("sinq::cpu_linear", _linear, mutates_args=())
"""`_linear` as one node of a compiled graph."""


@_operator.register_fake
def _shape(x: Tensor, *arguments: object) -> Tensor:
    rows = arguments[-3]
    assert isinstance(rows, int | torch.SymInt)
    return x.new_empty(*x.shape[:-1], rows)
