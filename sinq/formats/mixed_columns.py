"""Bits per column: some columns of a matrix have finer codes than others in the same groups and scales.

A group of a row has one range, one scale and one zero, whatever bits its columns have. They are those of a
grid (`grid.py`), whose codes go from 0 to its top, 2^grid.bits − 1. A column of b bits spreads its 2^b
codes over the same range:

    W[i, j] ≈ (offset_j + step_j · codes[i, j] − zero[i, j // group]) · scale[i, j // group]
    step_j = top / (2^b − 1), offset_j = 0

With b = grid.bits this is the grid itself. One bit is different: two levels at the ends of the range would
be far from nearly all weights, so they are at its middle ± a quarter of it (offset = top/4, step = top/2).

Stored are the codes, packed together for all columns of one bit width (columns in their order); scales and
zeros in the form of `QuantizedTensor`; and two bits for each column, the index of its bit width among up to
four. The order of columns follows from those indices, so no permutation is stored:

    bits per weight = mean(b) + (scale and zero)/group + 2/out

Not covered: a fast product. The matrix is dequantized for every product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.common.reading import counts, entry
from sinq.common.reading import notes as typed_notes
from sinq.formats import stored_scales
from sinq.formats.base import CompressedWeight
from sinq.formats.checks import has_numbers, matrix_shape, require_finite, require_names, require_tensor
from sinq.formats.grid import BITS, Grid
from sinq.formats.packing import pack, packed_bytes, unpack
from sinq.formats.rounding import by_group

COLUMN_BITS = (1, *BITS)
"""Bit widths that a column may have."""
INDEX_BITS = 2
"""Stored bits per column for the index of its bit width."""


@dataclass(frozen=True, eq=False)
class ColumnLevels:
    """The levels of each column, as positions w/scale + zero on a uniform grid; all tensors (in,)."""

    bits: Tensor
    """Bits of each column, whole numbers."""
    choices: tuple[int, ...]
    """Bit widths to choose from: up to four."""
    top: Tensor
    """Largest code, float32."""
    step: Tensor
    """Distance between the positions of two consecutive codes, float32."""
    density: Tensor
    """1 / step, float32."""
    offset: Tensor
    """Position of code 0, float32."""

    @classmethod
    def of(cls, bits: Tensor, choices: Sequence[int], grid: Grid) -> Self:
        """Return the levels of columns with `bits`, (in,), over the range of the grid."""
        last, top = 2.0**grid.bits - 1, 2.0 ** bits.double() - 1
        step, offset = torch.where(bits == 1, last / 2, last / top), torch.where(bits == 1, last / 4, 0.0)
        return cls(bits, tuple(choices), top.float(), step.float(), (1 / step).float(), offset.float())

    @classmethod
    def uniform(cls, columns: int, grid: Grid) -> Self:
        """Return levels equal to those of the grid in every column."""
        return cls.of(torch.full((columns,), grid.bits), (grid.bits,), grid)

    def nearest(self, position: Tensor, columns: slice | int = slice(None)) -> Tensor:
        """Return the codes, uint8, nearest to positions (out, columns) or (out,)."""
        codes = ((position - self.offset[columns]) * self.density[columns]).round_()
        return codes.clamp_(min=0).minimum(self.top[columns]).to(torch.uint8)

    def position(self, codes: Tensor, columns: slice | int = slice(None)) -> Tensor:
        """Return the positions, float32, of codes (out, columns) or (out,)."""
        return codes.float() * self.step[columns] + self.offset[columns]


@dataclass(frozen=True, eq=False)
class MixedColumns(CompressedWeight):
    """Codes of up to four bit widths, one for each column, with shared scales and zeros.

    tensors: `codes_{b}` uint8 packed, for each bit width b that a column has; `bits` uint8 packed, the
    index of each column's bit width in `choices`; `scale`, `zero` (out, in/group), with `scale_range` or
    `scale_exponent` where needed (`stored_scales.py`).

    Raises:
        ValueError: the tensors are not those of the grid, the shape and the bits of the columns; a column's
            index is none of `choices`; numbers are not finite.
    """

    name: ClassVar[str] = "mixed_columns"

    grid: Grid
    """Grid of the groups' ranges; a column of `grid.bits` bits has the levels of the grid."""
    shape: tuple[int, int]
    choices: tuple[int, ...]
    tensors: dict[str, Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors, (rows, columns) = self.tensors, self.shape
        self._require_choices()
        codes = [f"codes_{width}" for width in self.choices]
        require_names(self.name, tensors, ("bits", "scale", "zero"), (*codes, *stored_scales.SCALE_TENSORS))
        groups, bits = (rows, columns // self.grid.group_size), self.grid.auxiliary_bits
        require_tensor("bits", tensors["bits"], torch.uint8, (packed_bytes(columns, INDEX_BITS),))
        stored_scales.require_scale(tensors, groups, bits)
        require_tensor("zero", tensors["zero"], stored_scales.STORED_ZERO[bits], groups)
        if has_numbers(tensors):
            self._require_codes()
            require_finite(tensors)
            stored_scales.require_finite_scale(tensors)

    def _require_choices(self) -> None:
        """Raise `ValueError` if the grid or the bit widths to choose from are not possible."""
        if (misfit := self.grid.incompatibility(self.shape)) is not None:
            raise ValueError(f"{misfit.reason} {self.shape[0]}×{self.shape[1]}; {misfit.accepted}")
        possible = set(self.choices) <= set(COLUMN_BITS) and len(set(self.choices)) == len(self.choices)
        if not possible or not 0 < len(self.choices) <= 1 << INDEX_BITS:
            raise ValueError(
                f"choices={self.choices} is not possible; it must be one to four of {COLUMN_BITS}"
            )

    def _require_codes(self) -> None:
        """Raise `ValueError` if the codes of a bit width are not those of all columns that have it."""
        index = unpack(self.tensors["bits"], INDEX_BITS, (self.shape[1],))
        columns = torch.bincount(index.long(), minlength=1 << INDEX_BITS).tolist()
        if any(columns[len(self.choices) :]):
            raise ValueError(f"bits has columns whose index is none of the {len(self.choices)} choices")
        for width, count in zip(self.choices, columns, strict=False):
            name, expected = f"codes_{width}", packed_bytes(self.shape[0] * count, width)
            if count:
                require_names(self.name, self.tensors, (name,), self.tensors)
            if name in self.tensors:
                require_tensor(name, self.tensors[name], torch.uint8, (expected,))

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
        """Pack codes by bit width, and round scales to the grid's stored form.

        Args:
            codes: uint8 (out, in), up to the largest code of their column.
            scale, zero: (out, in / group_size).
        """
        masks = {width: levels.bits == width for width in levels.choices}
        index = torch.stack(list(masks.values())).to(torch.uint8).argmax(0).to(torch.uint8)
        tensors = {
            f"codes_{width}": pack(codes[:, mask], width) for width, mask in masks.items() if mask.any()
        }
        tensors |= {"bits": pack(index, INDEX_BITS), "zero": stored_scales.store_zero(zero, grid)}
        tensors |= stored_scales.store_scale(scale, grid.auxiliary_bits)
        return cls(grid, (codes.shape[0], codes.shape[1]), levels.choices, tensors, notes)

    def bits(self) -> Tensor:
        """Return the bits of each column, int64 (in,)."""
        index = unpack(self.tensors["bits"], INDEX_BITS, (self.shape[1],))
        return torch.tensor(self.choices, device=index.device)[index.long()]

    def codes(self) -> Tensor:
        """Return the codes, uint8 (out, in)."""
        bits = self.bits()
        codes = torch.empty(self.shape, dtype=torch.uint8, device=bits.device)
        for width in self.choices:
            if (packed := self.tensors.get(f"codes_{width}")) is not None:
                columns = (bits == width).nonzero()[:, 0]
                codes[:, columns] = unpack(packed, width, (self.shape[0], len(columns)))
        return codes

    def scale(self) -> Tensor:
        """Return the scale of each group, float32 (out, in / group_size)."""
        return stored_scales.load_scale(self.tensors)

    def zero(self) -> Tensor:
        """Return the zero of each group, float32 (out, in / group_size)."""
        return stored_scales.load_zero(self.tensors["zero"], self.grid)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        positions = ColumnLevels.of(self.bits(), self.choices, self.grid).position(self.codes())
        groups = by_group(positions, self.grid.group_size)
        return groups.sub_(self.zero()[..., None]).mul_(self.scale()[..., None]).reshape(self.shape).to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def config(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "choices": list(self.choices),
            "grid": self.grid.as_json(),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        grid = Grid.from_json(entry(config, "grid", dict))
        shape = matrix_shape(entry(config, "shape", list))
        choices = tuple(counts(entry(config, "choices", list), "choices"))
        return cls(grid, shape, choices, tensors, typed_notes(entry(config, "notes", dict)))
