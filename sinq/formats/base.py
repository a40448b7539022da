"""The interfaces of a *format*, which describes storage, and of a compressed weight, the stored value.

`Grid` (scalar codes with scales per group) and `Codebooks` (sums of vectors from codebooks) are formats. A
method declares its format in `LayerMethod.format`. A plan (`methods/plan.py`), made before the first matrix
is touched, and every label depend on formats only.

`CompressedWeight` is the whole contract between a method and everything behind it (linear layers,
checkpoints, size accounting): a shape, `dequantize`, and the tensors and plain configuration it is rebuilt
from. `nbytes` and `bits_per_weight` are sums over those tensors, so they cannot disagree with what is
saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from sinq.common.named import Named, name_of, named
from sinq.common.reading import entry


@dataclass(frozen=True)
class Incompatibility:
    """The reason why a format does not fit a matrix, and the options that would fit.

    Both are parts of one sentence: `reason` "3 layers: 3 like x (8×9)" `accepted`.
    """

    reason: str
    accepted: str


class Format(Protocol):
    """The way a method stores a matrix; a frozen dataclass."""

    @property
    def label(self) -> str:
        """A short label for people: "4-bit g64", "2x8 g8"."""
        ...

    def tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return rows, columns of the smallest piece of a matrix (out, in) that can be compressed alone."""
        ...

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        """Return the reason why the format cannot store a matrix (out, in), or None if it can."""
        ...

    def shrunk(self, shape: tuple[int, int]) -> Self | None:
        """Return the nearest smaller format that fits a matrix (out, in), or None if none does."""
        ...


class CompressedWeight(Named, ABC):
    """A matrix (out_features, in_features) in fewer bits.

    A class checks tensors when a value is made (`checks.py`): kernels read them without looking again.
    """

    shape: tuple[int, int]
    notes: Mapping[str, float]
    """Decisions made during compression (a gate that fired, a damping that was raised). The run's row counts
    them."""

    @abstractmethod
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix (out, in) that this value stands for; computed in float32, then cast."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return all stored tensors by name."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return everything that `from_state` needs besides tensors, as plain JSON values."""

    @classmethod
    @abstractmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Return the value that `config` and `state_dict` were taken from."""

    @property
    def group_size(self) -> int | None:
        """Number of consecutive inputs of a row that are stored together; None if undefined."""
        return None

    @property
    def core(self) -> "CompressedWeight":
        """The rest of the value, which multiplies `core_inputs(x)`; by default the value itself."""
        return self

    def core_inputs(self, x: Tensor) -> Tensor:
        """Return x (..., in) as the codes see it: x Ŵᵀ = core_inputs(x) coreᵀ.

        Activations are rounded there, if they are (`model/activations.py`).
        """
        return x

    def tunable(self) -> tuple[str, ...]:
        """Return the names of the tensors in `state_dict` in which `dequantize` can be differentiated.

        By default these are the floating-point tensors; codes never are.
        """
        return tuple(name for name, tensor in self.state_dict().items() if tensor.is_floating_point())

    def to(self, device: torch.device | str) -> Self:
        """Return this value with its tensors on a device."""
        return self.with_tensors({name: tensor.to(device) for name, tensor in self.state_dict().items()})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return this value with some tensors replaced.

        Args:
            tensors: name → tensor of the same shape; a number stored as float16 may be float32.
        """
        return type(self).from_state(self.config(), self.state_dict() | dict(tensors))

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of all stored tensors, divided by the number of weights."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])


INNER = "inner_"
"""Prefix of the tensors of a value in another one."""


def inner_of(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[CompressedWeight, dict[str, Tensor]]:
    """Return the value in another one, from the outer one's configuration and tensors, and the other tensors.

    Raises:
        ValueError: see `rebuilt`.
    """
    inner = {key.removeprefix(INNER): tensor for key, tensor in tensors.items() if key.startswith(INNER)}
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(INNER)}
    return rebuilt(entry(config, "inner", dict), inner), rest


def stored_as(value: CompressedWeight) -> dict[str, Any]:
    """Return name, version and configuration of a value as plain JSON values; `rebuilt` is the inverse."""
    return {"name": name_of(value), "version": value.version, "config": value.config()}


def rebuilt(stored: Mapping[str, Any], tensors: dict[str, Tensor]) -> CompressedWeight:
    """Return the value that a file describes, with these tensors.

    Raises:
        ValueError: no imported class has the name, the class reads another version, or configuration and
            tensors do not make a value.
    """
    kind = named(CompressedWeight, entry(stored, "name", str))  # type: ignore[type-abstract]
    if entry(stored, "version", int) != kind.version:
        raise ValueError(
            f"{stored['name']} has version {stored['version']}; this code reads version {kind.version}"
        )
    return kind.from_state(entry(stored, "config", dict), tensors)
