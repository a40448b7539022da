"""Matrices as blocks of GGUF: 32 weights of a row with float16 d, and m in some types.

    Q4_0   18 bytes   d · (q − 8)      d, 16 bytes of codes
    Q4_1   20 bytes   d · q + m        d, m, 16 bytes of codes
    Q5_0   22 bytes   d · (q − 16)     d, fifth bits as one little-endian word, 16 bytes of codes
    Q5_1   24 bytes   d · q + m        d, m, fifth bits, 16 bytes of codes
    Q8_0   34 bytes   d · q            d, 32 signed bytes

Byte j of 4-bit codes has element j in its low half and element j + 16 in its high half. Codes are ours,
untouched; a group of 64 is two blocks with the same d and m. So a matrix is exact up to float16 of d = scale
and m = −zero · scale. Q8_0 has no m: it holds code − zero, where that is a whole number of one signed byte.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.export.view import MatrixView

BLOCK = 32
"""Weights of a block."""


@dataclass(frozen=True)
class BlockType:
    """A type of tensors in a GGUF file."""

    name: str
    number: int
    """`ggml_type` in the file."""
    weights: int
    """Weights of a block."""
    nbytes: int
    """Bytes of a block."""

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row."""
        return columns // self.weights * self.nbytes


F32 = BlockType("F32", 0, 1, 4)
F16 = BlockType("F16", 1, 1, 2)
Q4_0 = BlockType("Q4_0", 2, BLOCK, 18)
Q4_1 = BlockType("Q4_1", 3, BLOCK, 20)
Q5_0 = BlockType("Q5_0", 6, BLOCK, 22)
Q5_1 = BlockType("Q5_1", 7, BLOCK, 24)
Q8_0 = BlockType("Q8_0", 8, BLOCK, 34)
Q4_K = BlockType("Q4_K", 12, 8 * BLOCK, 144)
BF16 = BlockType("BF16", 30, 1, 2)


def per_block(numbers: Tensor, group_size: int) -> Tensor:
    """Return numbers of groups (out, in / group) as numbers of blocks (out, in / 32, 1)."""
    return numbers.repeat_interleave(group_size // BLOCK, dim=1)[..., None]


def half_bytes(numbers: Tensor) -> Tensor:
    """Return float16 numbers (…, n) as bytes (…, 2n)."""
    return numbers.half().contiguous().view(torch.uint8)


def nibbles(codes: Tensor) -> Tensor:
    """Return codes below 16, uint8 (…, 2n), as bytes (…, n): element j low, element j + n high."""
    low, high = codes.chunk(2, dim=-1)
    return low | high << 4


def fifth_bits(codes: Tensor) -> Tensor:
    """Return bit 4 of 32 codes, uint8 (…, 32), as the 4 bytes of a little-endian word."""
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=codes.device)
    return ((codes >> 4 & 1).unflatten(-1, (4, 8)) * places).sum(-1, dtype=torch.uint8)


def _blocks(view: MatrixView) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (out, in / 32, 32), and scale and zero (out, in / 32, 1) of each block."""
    group = view.group_size
    codes = view.codes.unflatten(1, (-1, BLOCK))
    return codes, per_block(view.scale, group), per_block(view.zero, group)


def pack_q4_0(view: MatrixView) -> Tensor:
    """Return the blocks of 4-bit codes whose zero is 8, uint8 (out, bytes)."""
    codes, scale, _ = _blocks(view)
    return torch.cat([half_bytes(scale), nibbles(codes)], dim=-1).flatten(1)


def pack_q4_1(view: MatrixView) -> Tensor:
    """Return the blocks of codes of at most 4 bits, uint8 (out, bytes)."""
    codes, scale, zero = _blocks(view)
    return torch.cat([half_bytes(scale), half_bytes(-zero * scale), nibbles(codes)], dim=-1).flatten(1)


def pack_q5_0(view: MatrixView) -> Tensor:
    """Return the blocks of 5-bit codes whose zero is 16, uint8 (out, bytes)."""
    codes, scale, _ = _blocks(view)
    return torch.cat([half_bytes(scale), fifth_bits(codes), nibbles(codes & 15)], dim=-1).flatten(1)


def pack_q5_1(view: MatrixView) -> Tensor:
    """Return the blocks of 5-bit codes, uint8 (out, bytes)."""
    codes, scale, zero = _blocks(view)
    parts = [half_bytes(scale), half_bytes(-zero * scale), fifth_bits(codes), nibbles(codes & 15)]
    return torch.cat(parts, dim=-1).flatten(1)


def pack_q8_0(view: MatrixView) -> Tensor:
    """Return the blocks of whole differences code − zero, uint8 (out, bytes)."""
    codes, scale, zero = _blocks(view)
    signed = (codes - zero).to(torch.int8).view(torch.uint8)
    return torch.cat([half_bytes(scale), signed], dim=-1).flatten(1)


def signed_bytes(view: MatrixView) -> bool:
    """Return whether code − zero of every possible code is a whole number of one signed byte."""
    zero = view.zero
    return bool(((zero == zero.round()) & (zero <= 128) & (2**view.bits - 1 - zero <= 127)).all())


PACKERS: dict[BlockType, Callable[[MatrixView], Tensor]] = {
    Q4_0: pack_q4_0,
    Q4_1: pack_q4_1,
    Q5_0: pack_q5_0,
    Q5_1: pack_q5_1,
    Q8_0: pack_q8_0,
}
"""Types that hold our codes as they are."""
