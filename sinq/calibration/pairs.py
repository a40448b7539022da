"""Two statistics of the same inputs, taken in one pass: a method around another may need one each."""

from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Self

import torch
from torch import Tensor

from sinq.calibration.statistics import InputStatistic


class Pair(InputStatistic):
    """Two statistics of the same inputs, made by `pair`."""

    kinds: ClassVar[tuple[type[InputStatistic], type[InputStatistic]]]

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.parts = tuple(kind(in_features, device) for kind in self.kinds)

    @classmethod
    def described(cls) -> str:
        return f"{' and '.join(kind.__name__ for kind in cls.kinds)} of each layer's inputs"

    def _add(self, rows: Tensor) -> None:
        for part in self.parts:
            part.tokens = self.tokens
            part._add(rows)

    def transformed(self, matrix: Tensor) -> Self:
        other = type(self)(len(matrix), self.device)
        other.parts, other.tokens = tuple(part.transformed(matrix) for part in self.parts), self.tokens
        return other

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": tensor
            for number, part in enumerate(self.parts)
            for name, tensor in part.tensors().items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        for number, part in enumerate(self.parts):
            start = f"{number}."
            part.load({name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)})
        self.tokens = max(part.tokens for part in self.parts)
        return self


@cache
def pair(first: type[InputStatistic], second: type[InputStatistic]) -> type[Pair]:
    """Return the class of two statistics of the same inputs; its parts are in this order."""
    return type(f"{first.__name__}And{second.__name__}", (Pair,), {"kinds": (first, second)})
