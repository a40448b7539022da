"""Codebooks: the format of additive quantization (AQLM, arXiv 2401.06118).

A group of weights is a sum of vectors, one from each codebook:

    W[r, j·group : (j + 1)·group] ≈ scale[r] · Σ_m codebook[m, codes[r, j, m]]

Each matrix has its own M codebooks of 2^B vectors, so their cost depends on the size of the matrix. The
cost in bits per weight, with o × n weights, groups of g, and float16 for codebooks and scales (one for each
row), is

    M·B / g   +   M·2^B·g·16 / (o·n)   +   16 / n

2x8 in groups of 8 is thus called a 2-bit format and costs 2.02 bits on a matrix of 4096², 2.2 on one of
576², and 2.6 on 192 × 576. One codebook of 16 bits costs 27 bits a weight at 576². Codebooks that take more
bits than the codes are therefore refused, by `codebook_share`.
"""

from dataclasses import dataclass, replace

from sinq.common.options import check, number, whole
from sinq.formats.base import Incompatibility

LARGEST_BITS = 16
HALF = 16
"""Bits of one stored number of a codebook, and of one scale."""


@dataclass(frozen=True)
class Codebooks:
    """The format of an additively quantized matrix (see the module's formula).

    Raises:
        ValueError: an option has a value that no matrix could have.
    """

    codebooks: int = 2
    """M: number of codebooks, and of vectors summed for a group."""
    bits_per_codebook: int = 8
    """B: a codebook has 2^B vectors."""
    group: int = 8
    """g: consecutive input weights of one row that share their codes."""
    codebook_share: float = 1.0
    """Largest accepted size of a layer's codebooks, as a multiple of the size of its codes. The default
    admits the published 1x16 models: their smallest layer (1024 × 4096) has codebooks exactly as large as
    its codes."""

    def __post_init__(self) -> None:
        check(
            self,
            codebooks=whole(1, 256),
            bits_per_codebook=whole(1, LARGEST_BITS),
            group=whole(1),
            codebook_share=number(above=0),
        )

    @property
    def label(self) -> str:
        return f"{self.codebooks}x{self.bits_per_codebook} g{self.group}"

    @property
    def vectors(self) -> int:
        """Number of vectors in a codebook."""
        return 1 << self.bits_per_codebook

    def code_bits(self, shape: tuple[int, int]) -> int:
        """Return the bits of all codes of a matrix (out, in)."""
        return shape[0] * (shape[1] // self.group) * self.codebooks * self.bits_per_codebook

    def codebook_bits(self) -> int:
        """Return the bits of all codebooks of a matrix."""
        return self.codebooks * self.vectors * self.group * HALF

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return the cost of a matrix (out, in) by the module's formula."""
        return (self.code_bits(shape) + self.codebook_bits() + HALF * shape[0]) / (shape[0] * shape[1])

    def tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        return shape[0], self.group

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        if shape[1] % self.group:
            sizes = ", ".join(str(g) for g in range(1, min(shape[1], 64) + 1) if shape[1] % g == 0)
            return Incompatibility(f"group={self.group} does not divide", f"take {sizes}")
        if self.codebook_bits() <= self.codebook_share * self.code_bits(shape):
            return None
        smaller = self.shrunk(shape)
        remedy = "take none of this group"
        if smaller is not None:
            remedy = f"take up to bits_per_codebook={smaller.bits_per_codebook}"
        return Incompatibility(
            f"codebooks={self.codebooks} of bits_per_codebook={self.bits_per_codebook} weigh more than"
            f" {self.codebook_share:g} of the codes of",
            f"would cost {self.bits_per_weight(shape):.1f} bits per weight and {remedy}",
        )

    def shrunk(self, shape: tuple[int, int]) -> "Codebooks | None":
        """Return this format with the largest group that divides the inputs, and as many bits as fit.

        The bits per codebook are the most that `codebook_share` admits; None if even one bit is too much.
        """
        groups = [g for g in range(1, self.group + 1) if shape[1] % g == 0]
        for bits in range(self.bits_per_codebook, 0, -1):
            fewer = replace(self, group=groups[-1], bits_per_codebook=bits)
            if fewer.codebook_bits() <= self.codebook_share * fewer.code_bits(shape):
                return fewer
        return None
