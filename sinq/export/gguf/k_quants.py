"""Q4_K: super-blocks of 256 weights, whose eight blocks of 32 share two float16 numbers; a re-fit.

    w = d · s · q − dmin · m        s, m: 6-bit whole numbers of each block of 32; q: 4-bit codes

144 bytes for 256 weights, 4.5 bits a weight, where Q4_1 has 5.0. The scale and the offset zero · scale of
each of our groups are rounded to 6 bits of the largest in the super-block, and every weight is then rounded
to its block's new levels. So codes and weights change a little, which `Q4_1` avoids.

Bytes: d, dmin, twelve bytes of s and m, and 128 bytes of codes (block 2i in the low halves of 32 bytes, block
2i + 1 in the high ones). Byte i < 4 of the twelve has s_i, byte 4 + i has m_i, byte 8 + i has the low halves
of s_(4+i) and m_(4+i), whose two upper bits lie in the upper bits of the bytes i and 4 + i.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.export.gguf.blocks import BLOCK, Q4_K, half_bytes, nibbles, per_block
from sinq.export.view import MatrixView

SUPER = Q4_K.weights
LARGEST = 63
"""Largest 6-bit number."""


@dataclass(frozen=True, eq=False)
class SuperBlocks:
    """The numbers of a matrix in Q4_K; n = in / 256."""

    d: Tensor
    """(out, n, 1), as float16 holds it; likewise `dmin`."""
    dmin: Tensor
    scales: Tensor
    """Whole numbers 0 … 63, (out, n, 8); likewise `mins`."""
    mins: Tensor
    codes: Tensor
    """uint8 (out, n, 8, 32)"""

    def dense(self) -> Tensor:
        """Return the matrix, float32 (out, in)."""
        step, offset = self.d * self.scales, self.dmin * self.mins
        return (step[..., None] * self.codes - offset[..., None]).flatten(1)

    def packed(self) -> Tensor:
        """Return the bytes, uint8 (out, bytes)."""
        twelve = _twelve(self.scales.to(torch.uint8), self.mins.to(torch.uint8))
        return torch.cat([half_bytes(self.d), half_bytes(self.dmin), twelve, _pairs(self.codes)], -1).flatten(
            1
        )


def refit(view: MatrixView) -> SuperBlocks:
    """Round a matrix whose zeros are at least 0."""
    weights = view.dense().unflatten(1, (-1, SUPER // BLOCK, BLOCK))
    d, scales = _six_bits(_by_super_block(view, view.scale))
    dmin, mins = _six_bits(_by_super_block(view, view.scale * view.zero))
    step, offset = (d * scales)[..., None], (dmin * mins)[..., None]
    codes = ((weights + offset) / step.where(step > 0, 1.0)).round().clamp(0, 15).to(torch.uint8)
    return SuperBlocks(d, dmin, scales, mins, codes)


def pack_q4_k(view: MatrixView) -> Tensor:
    """Return the super-blocks of a matrix, uint8 (out, bytes); its zeros are at least 0."""
    return refit(view).packed()


def _by_super_block(view: MatrixView, numbers: Tensor) -> Tensor:
    """Return numbers of groups as (out, in / 256, 8)."""
    return per_block(numbers, view.group_size).squeeze(-1).unflatten(1, (-1, SUPER // BLOCK))


def _six_bits(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shared factor (…, 1), as float16 holds it, and whole numbers 0 … 63 (…, 8)."""
    factor = (numbers.amax(-1, keepdim=True) / LARGEST).half().float()
    return factor, (numbers / factor.where(factor > 0, 1.0)).round().clamp(0, LARGEST)


def _twelve(scales: Tensor, mins: Tensor) -> Tensor:
    """Return the 6-bit numbers of eight blocks as twelve bytes (…, 12)."""
    (s, s_high), (m, m_high) = scales.chunk(2, dim=-1), mins.chunk(2, dim=-1)
    last = s_high & 15 | (m_high & 15) << 4
    return torch.cat([s | s_high >> 4 << 6, m | m_high >> 4 << 6, last], dim=-1)


def _pairs(codes: Tensor) -> Tensor:
    """Return the codes of eight blocks (…, 8, 32) as 128 bytes (…, 128)."""
    return nibbles(codes.unflatten(-2, (4, 2)).flatten(-2)).flatten(-2)


PACKERS_OF_K = {Q4_K: pack_q4_k}
"""Types of super-blocks."""
