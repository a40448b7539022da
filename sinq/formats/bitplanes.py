"""Bit planes: whole numbers of p bits as p matrices of bits, whose products are counted (ABQ-LLM's engine).

    X = Σ_i 2^i X⁽ⁱ⁾,   W = Σ_j 2^j W⁽ʲ⁾,   X Wᵀ = Σ_i Σ_j 2^(i+j) · popcount(X⁽ⁱ⁾ AND W⁽ʲ⁾)

popcount runs along the columns, which are packed in words of 64, the last one filled up with zeros. In two's
complement the top plane weighs −2^(bits − 1). So any p bits meet any q bits exactly, at p · q binary products
(arXiv 2408.08554; as binary matrix products in arXiv 1606.06160 before it).

This is the definition, in plain torch, for any device; `kernels/cpu/bitplanes.py` is fast.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD = 64
MOST_BITS = 8


@dataclass(frozen=True, eq=False)
class BitPlanes:
    """Bits of whole numbers, (rows, columns).

    Raises:
        ValueError: a number does not fit into the bits.
    """

    words: Tensor
    """int64 (bits, rows, ⌈columns / 64⌉)."""
    signed: bool
    """True for two's complement."""

    @classmethod
    def of(cls, numbers: Tensor, bits: int, signed: bool) -> Self:
        """Take whole numbers (rows, columns) of `bits` bits apart."""
        low = -(2 ** (bits - 1)) if signed else 0
        if not 1 <= bits <= MOST_BITS:
            raise ValueError(f"bits={bits} is not possible; it must be between 1 and {MOST_BITS}")
        wide = numbers.long()
        if wide.numel() and not (low <= int(wide.min()) and int(wide.max()) < low + 2**bits):
            kind = "signed" if signed else "unsigned"
            raise ValueError(f"numbers {numbers.min()} to {numbers.max()} have more than {bits} {kind} bits")
        filled = pad(wide, (0, -numbers.shape[1] % WORD)).unflatten(1, (-1, WORD))
        places = torch.arange(WORD, device=numbers.device)
        planes = [((filled >> plane & 1) << places).sum(-1) for plane in range(bits)]
        return cls(torch.stack(planes), signed)

    def weights(self) -> list[int]:
        """Return the number that a bit of each plane stands for."""
        bits = len(self.words)
        return [-(2**i) if self.signed and i == bits - 1 else 2**i for i in range(bits)]

    def product(self, other: Self) -> Tensor:
        """Return the sums of products with other rows, int64 (rows, rows of the other)."""
        shape = self.words.shape[1], other.words.shape[1]
        total = torch.zeros(shape, dtype=torch.int64, device=self.words.device)
        for mine, weight in zip(self.words, self.weights(), strict=True):
            for theirs, factor in zip(other.words, other.weights(), strict=True):
                total += weight * factor * popcount(mine[:, None] & theirs[None]).sum(-1)
        return total


def popcount(words: Tensor) -> Tensor:
    """Return the number of bits that are set in each int64 (Hacker's Delight, section 5-1)."""
    pairs = words - ((words >> 1) & 0x5555555555555555)
    fours = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    bytes_ = (fours + (fours >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (bytes_ * 0x0101010101010101 >> 56) & 0x7F


def set_bits(codes: Tensor, bits: int) -> int:
    """Return how many of the lowest bits of signed whole numbers are set, all numbers together."""
    return int(popcount(codes.long() & (2**bits - 1)).sum())
