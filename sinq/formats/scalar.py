"""The value that all scalar quantizers produce.

`QuantizedTensor` is the value of RTN, SINQ, HQQ, GPTQ, AWQ, NF4 …: packed codes, scales and zeros per
group, and column scales per tile (`grid.py` has the formula). SINQ's second scale and AWQ's channel scale
are the same field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.common.reading import entry, notes
from sinq.formats import stored_scales
from sinq.formats.base import CompressedWeight
from sinq.formats.checks import HALF, has_numbers, matrix_shape, require_finite, require_names, require_tensor
from sinq.formats.grid import Grid
from sinq.formats.packing import pack, packed_bytes, unpack
from sinq.formats.rounding import assign, by_group, centre, choose, level


@dataclass(frozen=True, eq=False)
class QuantizedTensor(CompressedWeight):
    """Codes, scales, zeros and column scales of one matrix, as they are stored.

    tensors: `codes` uint8 packed; `scale` (out, in/group), with `scale_range` or `scale_exponent` where
    needed (`stored_scales.py`); `zero` (out, in/group) unless symmetric; `col_scale` (out/tile rows, in) if
    there is one.

    Raises:
        ValueError: the tensors are not those of the grid and the shape, or have numbers that are not finite.
    """

    name: ClassVar[str] = "scalar"

    grid: Grid
    shape: tuple[int, int]
    tensors: dict[str, Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        grid, tensors, (rows, columns) = self.grid, self.tensors, self.shape
        if (misfit := grid.incompatibility(self.shape)) is not None:
            raise ValueError(f"{misfit.reason} {rows}×{columns}; {misfit.accepted}")
        zero = () if grid.symmetric else ("zero",)
        optional = ("col_scale", *stored_scales.SCALE_TENSORS)
        require_names(self.name, tensors, ("codes", "scale", *zero), optional)
        groups, bits = (rows, columns // grid.group_size), grid.auxiliary_bits
        require_tensor("codes", tensors["codes"], torch.uint8, (packed_bytes(rows * columns, grid.bits),))
        stored_scales.require_scale(tensors, groups, bits)
        if zero:
            require_tensor("zero", tensors["zero"], stored_scales.STORED_ZERO[bits], groups)
        self._require_col_scale()
        if has_numbers(tensors):
            require_finite(tensors)
            stored_scales.require_finite_scale(tensors)

    def _require_col_scale(self) -> None:
        """Raise `ValueError` if there are column scales of another form, or floats are of several types."""
        tensors, (rows, columns) = self.tensors, self.shape
        if "col_scale" in tensors:
            tiles = 1 if len(tensors["col_scale"]) == 1 else rows // self.grid.tile(self.shape)[0]
            dtypes = torch.float32 if self.grid.auxiliary_bits == 32 else HALF
            require_tensor("col_scale", tensors["col_scale"], dtypes, (tiles, columns))
        floats = {name: tensor.dtype for name, tensor in tensors.items() if tensor.is_floating_point()}
        if len(set(floats.values())) > 1:
            raise ValueError(
                f"{', '.join(floats)} have several types: {', '.join(map(str, floats.values()))}"
            )

    @property
    def is_trained(self) -> bool:
        """True while numbers that are stored as float16 are held as float32, to be trained."""
        floats = [tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point()]
        return self.grid.auxiliary_bits != 32 and torch.float32 in floats

    @classmethod
    def store(
        cls,
        codes: Tensor,
        grid: Grid,
        scale: Tensor,
        zero: Tensor | None,
        *,
        col_scale: Tensor | None = None,
        notes: Mapping[str, float] | None = None,
    ) -> Self:
        """Pack codes, and round scales to the grid's stored form.

        Args:
            codes: uint8 (out, in).
            scale, zero: (out, in/group_size); zero None if the grid is symmetric.
            col_scale: (out/tile rows, in).
        """
        shape = codes.shape[0], codes.shape[1]
        return cls.store_packed(
            pack(codes, grid.bits), shape, grid, scale, zero, col_scale=col_scale, notes=notes
        )

    @classmethod
    def store_packed(
        cls,
        packed: Tensor,
        shape: tuple[int, int],
        grid: Grid,
        scale: Tensor,
        zero: Tensor | None,
        *,
        row_scale: Tensor | None = None,
        col_scale: Tensor | None = None,
        notes: Mapping[str, float] | None = None,
    ) -> Self:
        """Round scales to the grid's stored form; the codes are packed already.

        Args:
            scale, zero, col_scale: as for `store`.
            row_scale: factor of `scale`, (out, in/group_size); None for 1.
        """
        whole = scale if row_scale is None else scale * row_scale
        tensors = {"codes": packed} | stored_scales.store_scale(whole, grid.auxiliary_bits)
        if zero is not None:
            tensors["zero"] = stored_scales.store_zero(zero, grid)
        if col_scale is not None:
            tensors["col_scale"] = col_scale.to(torch.float32 if grid.auxiliary_bits == 32 else torch.float16)
        return cls(grid, shape, tensors, notes or {})

    @classmethod
    def round(cls, weight: Tensor, grid: Grid, notes: Mapping[str, float] | None = None) -> Self:
        """Return a matrix (out, in), rounded to nearest in float32."""
        weight = weight.float()
        scale, zero = choose(weight, grid)
        return cls.store(assign(weight, scale, zero, grid), grid, scale, zero, notes=notes)

    def codes(self) -> Tensor:
        """Return the codes, uint8 (out, in)."""
        return unpack(self.tensors["codes"], self.grid.bits, self.shape)

    def scale(self) -> Tensor:
        """Return the scale of each group, float32 (out, in / group_size)."""
        return stored_scales.load_scale(self.tensors)

    def zero(self) -> Tensor | float:
        """Return the zeros, float32 (out, in / group_size), or the constant of a symmetric grid."""
        if "zero" not in self.tensors:
            return centre(self.grid)
        return stored_scales.load_zero(self.tensors["zero"], self.grid)

    def col_scale(self) -> Tensor | None:
        """Return the column scales of each tile, float32 (out / tile rows, in), or None."""
        return self.tensors["col_scale"].float() if "col_scale" in self.tensors else None

    @cached_property
    def core(self) -> "QuantizedTensor":
        """The value without column scales that are the same for all rows."""
        if not self._scales_inputs:
            return self
        return replace(self, tensors={k: v for k, v in self.tensors.items() if k != "col_scale"})

    def core_inputs(self, x: Tensor) -> Tensor:
        return (x.float() * self.tensors["col_scale"][0]).to(x.dtype) if self._scales_inputs else x

    @property
    def _scales_inputs(self) -> bool:
        """True if there is one column scale for all rows."""
        return "col_scale" in self.tensors and len(self.tensors["col_scale"]) == 1

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        codes, zero = self.codes(), self.zero()
        groups = by_group(level(codes, self.grid), self.grid.group_size)
        groups.sub_(zero[..., None] if isinstance(zero, Tensor) else zero).mul_(self.scale()[..., None])
        matrix = groups.reshape(self.shape)
        col_scale = self.col_scale()
        if col_scale is not None:
            tiles = matrix.reshape(len(col_scale), -1, self.shape[1])
            matrix = tiles.mul_(col_scale[:, None, :]).reshape(self.shape)
        return matrix.to(dtype)

    @property
    def group_size(self) -> int:
        return self.grid.group_size

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def config(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "grid": self.grid.as_json(),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        grid = Grid.from_json(entry(config, "grid", dict))
        shape = matrix_shape(entry(config, "shape", list))
        return cls(grid, shape, tensors, notes(entry(config, "notes", dict)))
