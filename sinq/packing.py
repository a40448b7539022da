"""Codes ↔ bytes: `bits` bits per code, nothing wasted. A 3-bit matrix costs 3 bits a weight, not 3.2 or 4.

Eight codes of b bits are exactly b bytes, for every b. So eight consecutive codes (row-major, ignoring row ends) form one
little-endian word of 8·b bits, code k at bit k·b, and the word's b low bytes are stored. The last word may be part empty: at
most b − 1 bytes.
"""

import torch
from torch import Tensor

CODES_PER_WORD = 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2^bits, any shape → uint8 (bits · ⌈codes / 8⌉,)."""
    flat = codes.reshape(-1)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % CODES_PER_WORD))
    columns = flat.reshape(-1, CODES_PER_WORD)
    words = torch.zeros(len(columns), dtype=torch.int64, device=codes.device)
    for k in range(CODES_PER_WORD):
        words |= columns[:, k].to(torch.int64) << (k * bits)
    return words.view(torch.uint8).reshape(-1, CODES_PER_WORD)[:, :bits].reshape(-1)


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: uint8 codes of `shape`."""
    count = torch.Size(shape).numel()
    word_bytes = torch.zeros(packed.numel() // bits, CODES_PER_WORD, dtype=torch.uint8, device=packed.device)
    word_bytes[:, :bits] = packed.reshape(-1, bits)
    words = word_bytes.view(torch.int64).reshape(-1)
    codes = torch.empty_like(word_bytes)
    for k in range(CODES_PER_WORD):
        codes[:, k] = (words >> (k * bits)) & (2**bits - 1)
    return codes.reshape(-1)[:count].reshape(shape)
