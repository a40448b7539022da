"""Codes of few levels, several in one word: five levels need log2 5 = 2.32 bits, not 3.

Three codes of five levels are one number below 125, which 7 bits hold: 2.333 bits a code. Five codes of
three levels are one number below 243: 1.6 bits a code. The value is that of a grid whose upper codes are
never used, and is decoded to it (`planes`) before it is multiplied.

Codes are taken in row-major order, ignoring row ends; the first of a word is its lowest digit. The last word
may be partly empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.common.reading import entry, notes
from sinq.formats.base import CompressedWeight, Incompatibility
from sinq.formats.checks import has_numbers, matrix_shape, require_tensor
from sinq.formats.grid import Grid
from sinq.formats.packing import pack, packed_bytes, unpack
from sinq.formats.scalar import QuantizedTensor

WORDS = {5: (3, 7), 3: (5, 8)}
"""Codes in a word, and bits of the word, by the number of levels."""


@dataclass(frozen=True)
class Repacked:
    """The format of a grid of which only the first levels are used.

    Raises:
        ValueError: there is no word for so many levels, or the grid has other bits than they need.
    """

    grid: Grid
    levels: int

    def __post_init__(self) -> None:
        if self.levels not in WORDS:
            raise ValueError(
                f"codes of {self.levels} levels are not repacked; those of {', '.join(map(str, WORDS))} are"
            )
        if 2**self.grid.bits < self.levels:
            raise ValueError(
                f"{self.levels} levels are more than the {2**self.grid.bits} of {self.grid.label}"
            )

    @property
    def label(self) -> str:
        """ "5 levels g64"."""
        return f"{self.levels} levels g{self.grid.group_size}"

    def tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        return self.grid.tile(shape)

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        return self.grid.incompatibility(shape)

    def shrunk(self, shape: tuple[int, int]) -> "Repacked | None":
        smaller = self.grid.shrunk(shape)
        return None if smaller is None else replace(self, grid=smaller)


@dataclass(frozen=True, eq=False)
class RepackedTensor(CompressedWeight):
    """A matrix of a grid whose codes are packed by their levels.

    tensors: those of `QuantizedTensor`, with `codes` as words, uint8 packed.

    Raises:
        ValueError: the tensors are not those of the format and the shape, or a word is too large.
    """

    name: ClassVar[str] = "repacked"

    format: Repacked
    shape: tuple[int, int]
    tensors: dict[str, Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        digits, bits = WORDS[self.format.levels]
        words = -(-self.shape[0] * self.shape[1] // digits)
        if "codes" in self.tensors:
            require_tensor("codes", self.tensors["codes"], torch.uint8, (packed_bytes(words, bits),))
        if has_numbers(self.tensors):
            largest = int(unpack(self.tensors["codes"], bits, (words,)).max())
            if largest >= self.format.levels**digits:
                raise ValueError(f"codes has a word {largest}; words are below {self.format.levels**digits}")
        _ = self.planes  # a grid's value checks the other tensors

    @classmethod
    def of(cls, value: QuantizedTensor, levels: int) -> Self:
        """Return a value of a grid, all of whose codes are below `levels`, repacked."""
        format = Repacked(value.grid, levels)
        words = to_words(value.codes(), levels)
        return cls(format, value.shape, value.tensors | {"codes": words}, value.notes)

    @cached_property
    def planes(self) -> QuantizedTensor:
        """The value with codes as wide as the grid's bits."""
        grid = self.format.grid
        codes = from_words(self.tensors["codes"], self.format.levels, self.shape)
        return QuantizedTensor(grid, self.shape, self.tensors | {"codes": pack(codes, grid.bits)}, self.notes)

    @property
    def core(self) -> CompressedWeight:
        return self.planes.core

    def core_inputs(self, x: Tensor) -> Tensor:
        return self.planes.core_inputs(x)

    @property
    def group_size(self) -> int:
        return self.format.grid.group_size

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.planes.dequantize(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def config(self) -> dict[str, Any]:
        return self.planes.config() | {"levels": self.format.levels}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        grid = Grid.from_json(entry(config, "grid", dict))
        rows, columns = matrix_shape(entry(config, "shape", list))
        format = Repacked(grid, entry(config, "levels", int))
        return cls(format, (rows, columns), tensors, notes(entry(config, "notes", dict)))


def to_words(codes: Tensor, levels: int) -> Tensor:
    """Return codes below `levels`, uint8 of any shape, as packed words, uint8."""
    digits, bits = WORDS[levels]
    flat = codes.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % digits)).reshape(-1, digits)
    powers = torch.tensor([levels**k for k in range(digits)], dtype=torch.uint8, device=codes.device)
    return pack((padded * powers).sum(1, dtype=torch.uint8), bits)


def from_words(packed: Tensor, levels: int, shape: tuple[int, int]) -> Tensor:
    """Return the codes of `shape`, uint8, that `to_words` packed."""
    digits, bits = WORDS[levels]
    count = shape[0] * shape[1]
    words = unpack(packed, bits, (-(-count // digits),))
    found = torch.stack([words // levels**k % levels for k in range(digits)], dim=1)
    return found.reshape(-1)[:count].reshape(shape)
