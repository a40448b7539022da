"""Rotation of rows on CUDA: butterflies in registers, one launch; see `sinq/kernels/rotation.py`.

A program has a few segments, whole. A pass takes the neighbours 2j and 2j + 1 to their sum and difference,
and puts sums first and differences last: so all passes are alike, and after as many as the length has bits
every number is back where it belongs. Paley's factor is left to torch's product, in float32.

Nothing waits for the device, so CUDA graphs can capture it after a first call. Not measured on a device.
"""

from math import sqrt

import torch
import triton
import triton.language as tl
from torch import Tensor

from sinq.formats.rotation import Rotation, paley_product, segment_length

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK = 2048
"""Numbers in a program, unless one segment is longer."""
EACH = 16
"""Numbers in the registers of one thread, unless that takes more than 16 warps."""


def rotated_rows(rows: Tensor, rotation: Rotation, back: bool = False) -> Tensor:
    """See `sinq.kernels.rotation.rotated_rows`."""
    given = (rows if rows.dtype in DTYPES else rows.float()).detach().contiguous()
    if back:
        return _transformed(paley_product(given.float(), transposed=True), rotation, back)
    return paley_product(_transformed(given, rotation, back), transposed=False)


def _transformed(rows: Tensor, rotation: Rotation, back: bool) -> Tensor:
    """Return signs times the butterflies of rows (..., n), or the butterflies of signs times rows."""
    length = segment_length(rotation.size)
    out, segments = torch.empty_like(rows, dtype=torch.float32), rows.numel() // length
    block, warps = form(length)
    if segments:
        butterflies[(triton.cdiv(segments, block),)](
            rows, rotation.signs, out, segments, 1 / sqrt(rotation.size), SIZE=rotation.size, LENGTH=length,
            PASSES=length.bit_length() - 1, BLOCK=block, BACK=back, num_warps=warps,
        )  # fmt: skip
    return out


def form(length: int) -> tuple[int, int]:
    """Return the segments of a program, and its warps, for segments of a length."""
    block = max(1, BLOCK // length)
    return block, min(16, max(1, block * length // (32 * EACH)))


@triton.jit
def butterflies(  # type: ignore[no-untyped-def]
    rows, signs, out, segments, unit,
    SIZE: tl.constexpr, LENGTH: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Write the transform of BLOCK segments of LENGTH = 2^PASSES numbers to `out`, float32.

    A row of SIZE numbers has packed signs; they are multiplied before, or after if BACK, with `unit`.
    """
    segment = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offset = segment.to(tl.int64)[:, None] * LENGTH + tl.arange(0, LENGTH)[None, :]
    valid = (segment < segments)[:, None]
    number = (offset % SIZE).to(tl.int32)
    bit = (tl.load(signs + number // 8).to(tl.int32) >> (number % 8)) & 1
    scale = (1.0 - 2.0 * bit.to(tl.float32)) * unit
    x = tl.load(rows + offset, mask=valid, other=0).to(tl.float32)
    if not BACK:
        x = x * scale
    for _ in tl.static_range(PASSES):
        even, odd = tl.split(tl.reshape(x, [BLOCK, LENGTH // 2, 2]))
        x = tl.reshape(tl.permute(tl.join(even + odd, even - odd), (0, 2, 1)), [BLOCK, LENGTH])
    if BACK:
        x = x * scale
    tl.store(out + offset, x, mask=valid)
