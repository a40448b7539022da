"""What the plan asks of a *format*: whether a matrix can be stored in it, and what could be instead.

`Grid` (scalar codes with scales per group) and `Codebooks` (sums of vectors from codebooks) are formats. A method names its own in
`LayerMethod.format`; everything before the first matrix is touched (`plan.py`) and every label speaks to formats only.
"""

from dataclasses import dataclass
from typing import Protocol, Self


@dataclass(frozen=True)
class Misfit:
    """Why a format does not fit a matrix, and what would, as the parts of a sentence: `why` "3 layers: 3 like x (8×9)" `fitting`."""

    why: str
    fitting: str


class Format(Protocol):
    """How a method stores a matrix; a frozen dataclass."""

    @property
    def label(self) -> str:
        """A few letters for people: "4-bit g64", "2x8 g8"."""
        ...

    def tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the smallest piece that can be compressed alone, of a matrix (out, in)."""
        ...

    def misfit(self, shape: tuple[int, int]) -> Misfit | None:
        """Why a matrix (out, in) cannot be stored so; None where it can."""
        ...

    def shrunk(self, shape: tuple[int, int]) -> Self | None:
        """The nearest smaller format that fits a matrix (out, in); None where there is none."""
        ...
