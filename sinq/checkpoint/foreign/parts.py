"""Parts of one quantized matrix, in no project's layout, and the value of ours that holds them.

    W[i, j] = (level(codes[i, j]) − zero[i, k]) · scale[i, k] · col_scale[tile(i), j],  k = j // group_size

The value decodes to exactly this, computed in float32. Numbers are stored as float16 where that loses
nothing, else as float32. What the files take is counted there (`reader.py`): zeros of 4 bits, or scales in
bytes of the official release, are wider here.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from sinq.common.errors import NotApplicable
from sinq.formats.grid import BITS, Grid, Levels
from sinq.formats.packing import pack, unpack
from sinq.formats.scalar import QuantizedTensor


@dataclass(frozen=True, eq=False)
class Parts:
    """Codes, scales and zeros of a matrix (out, in), or of several: then all tensors have one dimension more.

    Raises:
        ValueError: bits or group are not those of a grid here.
    """

    bits: int
    codes: Tensor
    """uint8 (…, out, in)."""
    scale: Tensor
    """(…, out, in / group), any float."""
    zero: Tensor | None
    """(…, out, in / group), any number; None for 2^(bits − 1), or 0 with levels of a table."""
    col_scale: Tensor | None = None
    """(…, tiles, in): one for all rows, or one for each `group` rows."""
    levels: Levels = Levels.uniform
    notes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = self.scale.shape[-1]
        if self.bits not in BITS:
            raise ValueError(f"codes have {self.bits} bits; this library has {', '.join(map(str, BITS))}")
        if not groups or self.codes.shape[-1] % groups:
            raise ValueError(f"{groups} groups do not divide {self.codes.shape[-1]} columns")

    @property
    def group_size(self) -> int:
        return self.codes.shape[-1] // self.scale.shape[-1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[-2], self.codes.shape[-1]

    @cached_property
    def grid(self) -> Grid:
        """The format of the value.

        Raises:
            ValueError: there is none of these options.
        """
        tiled = self.col_scale is not None and self.col_scale.shape[-2] > 1
        try:
            return Grid(
                self.bits,
                self.group_size,
                tiling=2 if tiled else 1,
                levels=self.levels,
                symmetric=self.zero is None,
                auxiliary_bits=16 if all(map(_fits_half, self._floats().values())) else 32,
            )
        except NotApplicable as error:
            raise ValueError(str(error)) from error

    def _floats(self) -> dict[str, Tensor]:
        named = {"scale": self.scale, "zero": self.zero, "col_scale": self.col_scale}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def value(self) -> QuantizedTensor:
        """Return the value of one matrix.

        Raises:
            ValueError: tensors do not fit each other, or have numbers that are not finite.
        """
        dtype = torch.float16 if self.grid.auxiliary_bits == 16 else torch.float32
        floats = {name: tensor.to(dtype).contiguous() for name, tensor in self._floats().items()}
        codes = {"codes": pack(self.codes.contiguous(), self.bits)}
        return QuantizedTensor(self.grid, self.shape, codes | floats, self.notes)

    def values(self) -> list[QuantizedTensor]:
        """Return the value of each of several matrices, or of the only one."""
        if self.codes.ndim == 2:
            return [self.value()]
        return [self.chosen(k).value() for k in range(len(self.codes))]

    def chosen(self, k: int) -> "Parts":
        """Return the parts of one of several matrices."""
        zero = None if self.zero is None else self.zero[k]
        col_scale = None if self.col_scale is None else self.col_scale[k]
        return replace(self, codes=self.codes[k], scale=self.scale[k], zero=zero, col_scale=col_scale)

    def tiled(self) -> "Parts":
        """Return the same with column scales for each `group_size` rows, so that rows can be joined."""
        if self.col_scale is None or self.col_scale.shape[-2] != 1:
            return self
        tiles = self.shape[0] // self.group_size
        return replace(self, col_scale=self.col_scale.expand(tiles, -1))


def _fits_half(numbers: Tensor) -> bool:
    """Return whether float16 holds all numbers exactly."""
    return numbers.dtype == torch.float16 or bool((numbers.to(torch.float16).double() == numbers).all())


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes of each row, uint8 (rows, count).

    The codes of a row are one stream of bits, the lowest bit of a word first; a row begins with a word.

    Args:
        words: int32 (rows, ⌈count · bits / 32⌉).
    """
    rows, length = words.shape[0], 4 * words.shape[1]
    padded = torch.nn.functional.pad(words.contiguous().view(torch.uint8), (0, -length % bits))
    return unpack(padded, bits, (rows, 8 * padded.shape[1] // bits))[:, :count]


def spaced_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes of each row, uint8 (rows, count), of words that hold 32 // bits codes.

    The first code of a word is in its lowest bits; the upper bits that are left over are unused.

    Args:
        words: int32 (rows, ⌈count / (32 // bits)⌉).
    """
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    codes = (words[:, :, None] >> shifts) & ((1 << bits) - 1)
    return codes.to(torch.uint8).reshape(len(words), -1)[:, :count]
