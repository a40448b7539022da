"""Bits per column: a matrix some of whose columns have finer codes than others, inside the same groups with the same scales.

A group of a row has one range, one scale and one zero, whatever bits its columns have: those of a grid (`grid.py`), whose codes go from
0 to its top, 2^grid.bits − 1. A column of b bits spreads its 2^b codes over that same range:

    W[i, j] ≈ (offset_j + step_j · codes[i, j] − zero[i, j // group]) · scale[i, j // group]        step_j = top / (2^b − 1), offset_j = 0

With b = grid.bits this is the grid itself. One bit is different: two levels at the ends of the range would be far from nearly all weights,
so they lie at its middle ± a quarter of it (offset = top / 4, step = top / 2).

Stored are the codes, packed for all columns of one width together (columns in their order), scales and zeros as `QuantizedTensor` has
them, and for each column two bits that say which of up to four widths it has. The order of columns follows from those bits, so no
permutation is stored:

    bits per weight = mean(b) + (scale and zero)/group + 2/out

Not covered: a fast product. The matrix is dequantized for each one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.formats import stored_scales
from sinq.formats.base import CompressedWeight
from sinq.formats.grid import BITS, Grid, Levels
from sinq.formats.packing import pack, unpack
from sinq.formats.rounding import by_group

COLUMN_BITS = (1, *BITS)
"""Widths a column may have."""
INDEX_BITS = 2
"""Stored per column: which of the widths it has."""


@dataclass(frozen=True, eq=False)
class ColumnLevels:
    """The codes of each column, on the positions w/scale + zero of a uniform grid; all tensors (in,)."""

    bits: Tensor
    """Whole numbers."""
    choices: tuple[int, ...]
    """The widths that columns could have had: up to four."""
    top: Tensor
    """The largest code, float32."""
    step: Tensor
    """From one code to the next, float32."""
    density: Tensor
    """1 / step, float32."""
    offset: Tensor
    """Where code 0 lies, float32."""

    @classmethod
    def of(cls, bits: Tensor, choices: Sequence[int], grid: Grid) -> Self:
        """Levels of columns with so many bits each, (in,), over the range of the grid."""
        last, top = 2.0**grid.bits - 1, 2.0 ** bits.double() - 1
        step, offset = torch.where(bits == 1, last / 2, last / top), torch.where(bits == 1, last / 4, 0.0)
        return cls(bits, tuple(choices), top.float(), step.float(), (1 / step).float(), offset.float())

    @classmethod
    def uniform(cls, columns: int, grid: Grid) -> Self:
        """The grid's own."""
        return cls.of(torch.full((columns,), grid.bits), (grid.bits,), grid)

    def nearest(self, position: Tensor, columns: slice | int = slice(None)) -> Tensor:
        """The nearest codes, uint8, to positions (out, columns) or (out,)."""
        codes = ((position - self.offset[columns]) * self.density[columns]).round_()
        return codes.clamp_(min=0).minimum(self.top[columns]).to(torch.uint8)

    def position(self, codes: Tensor, columns: slice | int = slice(None)) -> Tensor:
        """The positions, float32, of codes (out, columns) or (out,)."""
        return codes.float() * self.step[columns] + self.offset[columns]


@dataclass(frozen=True, eq=False)
class MixedColumns(CompressedWeight):
    """Codes of up to four widths, one for each column, under shared scales and zeros.

    tensors: `codes_{b}` uint8 packed, for each width b that a column has; `bits` uint8 packed, the index of each column's width in
    `choices`; `scale`, `zero` (out, in/group), with `scale_range` or `scale_exponent` where needed (`auxiliary.py`).
    """

    name: ClassVar[str] = "mixed_columns"

    grid: Grid
    """Of the ranges: its bits are those of a column whose levels are the grid's own."""
    shape: tuple[int, int]
    choices: tuple[int, ...]
    tensors: dict[str, Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def store(
        cls,
        codes: Tensor,
        levels: ColumnLevels,
        grid: Grid,
        scale: Tensor,
        zero: Tensor,
        notes: Mapping[str, float],
    ) -> Self:
        """Pack codes by width, and round scales to how the grid stores them.

        Args:
            codes: uint8 (out, in), up to the top of their column's levels.
            scale, zero: (out, in / group_size).
        """
        of_width = {width: levels.bits == width for width in levels.choices}
        index = torch.stack(list(of_width.values())).to(torch.uint8).argmax(0).to(torch.uint8)
        tensors = {
            f"codes_{width}": pack(codes[:, mask], width) for width, mask in of_width.items() if mask.any()
        }
        tensors |= {"bits": pack(index, INDEX_BITS), "zero": stored_scales.store_zero(zero, grid)}
        tensors |= stored_scales.store_scale(scale, grid.auxiliary_bits)
        return cls(grid, (codes.shape[0], codes.shape[1]), levels.choices, tensors, notes)

    def bits(self) -> Tensor:
        """Bits of each column, int64 (in,)."""
        index = unpack(self.tensors["bits"], INDEX_BITS, (self.shape[1],))
        return torch.tensor(self.choices, device=index.device)[index.long()]

    def codes(self) -> Tensor:
        """uint8 (out, in)."""
        bits = self.bits()
        codes = torch.empty(self.shape, dtype=torch.uint8, device=bits.device)
        for width in self.choices:
            if (packed := self.tensors.get(f"codes_{width}")) is not None:
                columns = (bits == width).nonzero()[:, 0]
                codes[:, columns] = unpack(packed, width, (self.shape[0], len(columns)))
        return codes

    def scale(self) -> Tensor:
        """float32 (out, in / group_size)."""
        return stored_scales.load_scale(self.tensors)

    def zero(self) -> Tensor:
        """float32 (out, in / group_size)."""
        return stored_scales.load_zero(self.tensors["zero"], self.grid)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        positions = ColumnLevels.of(self.bits(), self.choices, self.grid).position(self.codes())
        groups = by_group(positions, self.grid.group_size)
        return groups.sub_(self.zero()[..., None]).mul_(self.scale()[..., None]).reshape(self.shape).to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def config(self) -> dict[str, Any]:
        grid = asdict(self.grid) | {"levels": self.grid.levels.name}
        return {
            "shape": list(self.shape),
            "choices": list(self.choices),
            "grid": grid,
            "notes": dict(self.notes),
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        grid = Grid(**(config["grid"] | {"levels": Levels[config["grid"]["levels"]]}))
        rows, columns = config["shape"]
        return cls(grid, (rows, columns), tuple(config["choices"]), tensors, config["notes"])
