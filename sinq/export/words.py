"""Codes in words of 32 bits, as several formats have them: a row is a stream of codes, lowest bits first.

Code i of a row begins at bit i · bits, across the borders of words, and a row begins with a word. That is the
stream of `formats/packing.py`, so where a row ends with a word, its bytes are ours.
"""

import torch
from torch import Tensor

from sinq.formats.packing import pack

WORD_BITS = 32


def int32_words(codes: Tensor, bits: int) -> Tensor:
    """Return uint8 codes (rows, columns) as int32 (rows, ⌈columns · bits / 32⌉)."""
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % WORD_BITS))
    words = pack(padded, bits).view(torch.int32).reshape(rows, -1)
    return words[:, : -(-columns * bits // WORD_BITS)].contiguous()
