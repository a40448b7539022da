"""What the plan asks of a *format*: whether a matrix can be stored in it, and what could be instead.

`Grid` (scalar codes with scales per group) and `Codebooks` (sums of vectors from codebooks) are formats. A method names its own in
`LayerMethod.format`; everything before the first matrix is touched (`plan.py`) and every label speaks to formats only.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from sinq.common.named import Named, name_of, named


@dataclass(frozen=True)
class Incompatibility:
    """Why a format does not fit a matrix, and what would, as the parts of a sentence: `why` "3 layers: 3 like x (8×9)" `fitting`."""

    reason: str
    accepted: str


class Format(Protocol):
    """How a method stores a matrix; a frozen dataclass."""

    @property
    def label(self) -> str:
        """A few letters for people: "4-bit g64", "2x8 g8"."""
        ...

    def tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the smallest piece that can be compressed alone, of a matrix (out, in)."""
        ...

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        """Why a matrix (out, in) cannot be stored so; None where it can."""
        ...

    def shrunk(self, shape: tuple[int, int]) -> Self | None:
        """The nearest smaller format that fits a matrix (out, in); None where there is none."""
        ...


class CompressedWeight(Named, ABC):
    """A matrix (out_features, in_features) in fewer bits."""

    shape: tuple[int, int]
    notes: Mapping[str, float]
    """What was decided while making it (a gate that fired, a damping that was raised); counted in the run's row."""

    @abstractmethod
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix (out, in) this value stands for; computed in float32, then cast."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that is stored, by name."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `from_state` needs besides tensors, as plain JSON values."""

    @classmethod
    @abstractmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of `config` and `state_dict`."""

    @property
    def group_size(self) -> int | None:
        """Consecutive inputs of a row that are stored together, where there is such a number."""
        return None

    def tunable(self) -> tuple[str, ...]:
        """Names of the stored numbers: tensors of `state_dict` in which `dequantize` can be differentiated. Codes are none."""
        return tuple(name for name, tensor in self.state_dict().items() if tensor.is_floating_point())

    def to(self, device: torch.device | str) -> Self:
        """Return this value with its tensors on a device; itself where they are there already."""
        return self.with_tensors({name: tensor.to(device) for name, tensor in self.state_dict().items()})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """This value with other tensors in the place of some, of the same shape, in any floating dtype where it had one."""
        return type(self).from_state(self.config(), self.state_dict() | dict(tensors))

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def bits_per_weight(self) -> float:
        """Everything stored, in bits, divided by the weights it stands for."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])


def stored_as(value: CompressedWeight) -> dict[str, Any]:
    """Return what a file says of a value besides its tensors, as plain JSON values; `rebuilt` is the inverse."""
    return {"name": name_of(value), "version": value.version, "config": value.config()}


def rebuilt(stored: Mapping[str, Any], tensors: dict[str, Tensor]) -> CompressedWeight:
    """Return the value that a file describes, with these tensors.

    Raises:
        ValueError: no imported class has the name, or the class reads another version.
    """
    kind = named(CompressedWeight, stored["name"])  # type: ignore[type-abstract]
    if stored["version"] != kind.version:
        raise ValueError(
            f"{stored['name']} has version {stored['version']}; this code reads version {kind.version}"
        )
    return kind.from_state(stored["config"], tensors)
