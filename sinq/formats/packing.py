"""Codes ↔ bytes: `bits` bits per code without padding. A 3-bit matrix costs 3 bits a weight, not 3.2 or 4.

Eight codes of b bits are exactly b bytes, for every b. So eight consecutive codes (row-major, ignoring row
ends) form one little-endian word of 8·b bits, code k at bit k·b, and the word's b low bytes are stored. The
last word may be partly empty: at most b − 1 bytes.

Eight codes of a byte each are one 64-bit word. Moving neighbours together in three steps (pairs, fours,
eights) closes the gaps:

    0a0b0c0d 0e0f0g0h → 00ab00cd 00ef00gh → 0000abcd 0000efgh → 00000000 abcdefgh
"""

import torch
from torch import Tensor

CODES_PER_WORD = 8


def packed_bytes(count: int, bits: int) -> int:
    """Return the number of bytes of `count` packed codes."""
    return bits * -(-count // CODES_PER_WORD)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return uint8 codes below 2^bits, of any shape, as packed bytes, uint8 (bits · ⌈codes / 8⌉,)."""
    flat = codes.reshape(-1)
    words = torch.nn.functional.pad(flat, (0, -flat.numel() % CODES_PER_WORD)).view(torch.int64)
    for width in (8, 16, 32):
        used = bits * width // 8
        words = (words & _lanes(used, 0, width)) | ((words >> (width - used)) & _lanes(used, used, width))
    return words.view(torch.uint8).reshape(-1, CODES_PER_WORD)[:, :bits].reshape(-1).contiguous()


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return the uint8 codes of `shape` that `pack` packed."""
    count = torch.Size(shape).numel()
    word_bytes = torch.zeros(packed.numel() // bits, CODES_PER_WORD, dtype=torch.uint8, device=packed.device)
    word_bytes[:, :bits] = packed.reshape(-1, bits)
    words = word_bytes.view(torch.int64).reshape(-1)
    for width in (32, 16, 8):
        used = bits * width // 8
        words = (words & _lanes(used, 0, width)) | ((words << (width - used)) & _lanes(used, width, width))
    return words.view(torch.uint8)[:count].reshape(shape)


def _lanes(used: int, start: int, width: int) -> int:
    """Return an int64 with `used` bits set from bit `start` of every 2 · width bits."""
    mask = sum(((1 << used) - 1) << (lane + start) for lane in range(0, 64, 2 * width))
    return mask - (1 << 64) if mask >> 63 else mask
