"""The grid: the values that a weight may take, and the storage of its scales.

A `Grid` describes the *format* of a quantized matrix completely, and not how its scales were found:

    W[i, j] ≈ (level(codes[i, j]) − zero[i, k]) · scale[i, k] · col_scale[i // tile, j],  k = j // group_size

`level` is the identity for uniform levels and a table look-up for NF4, NF3 and FP4. Every scalar quantizer
of this project (round to nearest, SINQ, and those in `baselines/`) takes a grid and produces this one
formula, so their sizes and speeds compare directly.

A *tile* is the piece of the matrix that shares one vector of column scales. With 1-D tiling it is all rows
× `group_size` columns. With 2-D tiling it is `group_size` × `group_size`, which costs 16/group_size more
bits per weight.

Not covered here: rounding itself (`rounding.py`) and the stored bytes (`scalar.py`).
"""

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sinq.common.errors import NotApplicable
from sinq.common.options import check, number, one_of, whole
from sinq.common.reading import entry
from sinq.common.reading import options as typed_options
from sinq.formats.base import Incompatibility

BITS = (2, 3, 4, 5, 6, 8)
SMALLEST_GROUP = 2
"""Smallest group size: one weight alone has no range."""
LARGEST_FLOOR = 1e4
"""Largest floor of a range; float16, the format of stored scales, ends at 65504."""
LISTED = 512
"""Largest group size that an error message proposes."""


class Levels(enum.Enum):
    """The values that codes stand for, before zero and scales.

    Tables cover [−1, 1]; NF tables hold quantiles of a Gaussian.
    """

    uniform = None
    # QLoRA (arXiv 2305.14314), appendix E.
    # fmt: off
    nf4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
           -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
           0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
           0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
    # The 3-bit table that SINQ's authors publish with their code.
    nf3 = (-1.0, -0.5350227355957031, -0.246931403875351, 0.0,
           0.1833375245332718, 0.3819939494132996, 0.6229856610298157, 1.0)
    # The 4-bit float of bitsandbytes: 1 sign, 2 exponent and 1 mantissa bit, divided by 12, with the
    # library's subnormal; zero has two codes.
    fp4 = (-1.0, -2 / 3, -1 / 2, -1 / 3, -1 / 4, -1 / 6, -1 / 192, 0.0,
           0.0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
    # fmt: on

    @property
    def bits(self) -> int | None:
        """Bits of a code of this table; None for uniform levels, which take any number."""
        return None if self.value is None else len(self.value).bit_length() - 1


@dataclass(frozen=True)
class Grid:
    """The format of a quantized matrix (see the module's formula).

    `fits` tells whether a grid fits a *given* matrix.

    Raises:
        ValueError: an option has a value that no matrix could have.
        NotApplicable: the bits are not those of the levels' table.
    """

    bits: int = 4
    """Bits per code: 2, 3, 4, 5, 6 or 8."""
    group_size: int = 64
    """Consecutive input weights of one row that share a scale and a zero-point."""
    tiling: int = 1
    """1: column scales span all rows. 2: they span `group_size` rows."""
    levels: Levels = Levels.uniform
    symmetric: bool = False
    """Store no zero-point: uniform codes are centred on 2^(bits − 1), tables on 0."""
    auxiliary_bits: int = 16
    """Bits of a stored scale or zero: 16 (float), 8 (see `stored_scales.py`), or 32 (float; to compare with
    references)."""
    range_floor: float = 0.0
    """Smallest range of a group, in units of the weight. The official release has 1e-4; 0 keeps tiny weights
    from rounding to 0."""

    def __post_init__(self) -> None:
        check(
            self,
            bits=one_of(*BITS),
            group_size=whole(SMALLEST_GROUP),
            tiling=one_of(1, 2),
            auxiliary_bits=one_of(8, 16, 32),
            range_floor=number(least=0, most=LARGEST_FLOOR),
        )
        table_bits = self.levels.bits
        if table_bits not in (None, self.bits):
            raise NotApplicable(
                f"bits={self.bits} is not possible with levels={self.levels.name},"
                f" whose table has {table_bits} bits"
            )

    @property
    def label(self) -> str:
        return f"{self.bits}-bit g{self.group_size}"

    @property
    def is_affine(self) -> bool:
        """True for uniform levels with a stored zero-point: the case that fast versions of rounding cover."""
        return self.levels is Levels.uniform and not self.symmetric

    def tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of a tile of a matrix of `shape` (out_features, in_features)."""
        return (shape[0] if self.tiling == 1 else self.group_size), self.group_size

    def fits(self, shape: tuple[int, int]) -> bool:
        """Return True if whole tiles cover a matrix of `shape`."""
        rows, columns = self.tile(shape)
        return shape[0] % rows == 0 and shape[1] % columns == 0

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        if self.fits(shape):
            return None
        sizes = [str(size) for size in self.fitting_sizes(shape) if size <= LISTED]
        return Incompatibility(
            f"group_size={self.group_size} does not divide", f"take {', '.join(sizes) or 'no size'}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the options as plain JSON values; `from_json` is the inverse."""
        return asdict(self) | {"levels": self.levels.name}

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> "Grid":
        """Return the grid that a file describes.

        Raises:
            ValueError: an option is unknown, or has a value of another type or that no grid could have.
        """
        name = entry(options, "levels", str)
        if name not in Levels.__members__:
            raise ValueError(
                f"levels={name} is not possible; it must be one of {', '.join(Levels.__members__)}"
            )
        return cls(**typed_options(cls, dict(options) | {"levels": Levels[name]}, "grid"))

    def fitting_sizes(self, shape: tuple[int, int]) -> list[int]:
        """Return every group size that would fit `shape`, ascending."""
        sizes = range(SMALLEST_GROUP, shape[1] + 1)
        return [g for g in sizes if shape[1] % g == 0 and replace(self, group_size=g).fits(shape)]

    def shrunk(self, shape: tuple[int, int]) -> "Grid | None":
        """Return this grid with the largest fitting group size up to its own, or None if none fits."""
        sizes = [g for g in self.fitting_sizes(shape) if g <= self.group_size]
        return replace(self, group_size=sizes[-1]) if sizes else None
