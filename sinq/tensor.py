"""What a compressed weight is: the protocol all methods produce, and the one value all scalar quantizers produce.

`CompressedWeight` is the whole contract between a method and everything behind it (linear layers, checkpoints, size accounting):
a shape, `dequantize`, and the tensors and plain configuration it is rebuilt from. `nbytes` and `bits_per_weight` are sums over those
tensors, so they cannot disagree with what is saved.

`QuantizedTensor` is the value of RTN, SINQ, HQQ, GPTQ, AWQ, NF4 …: packed codes, scales and zeros per group, and column scales
per tile (`grid.py` has the formula). SINQ's second scale and AWQ's channel scale are the same field.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq import auxiliary
from sinq.grid import Grid, Levels
from sinq.named import Named, name_of, named
from sinq.packing import pack, unpack
from sinq.rounding import assign, by_group, centre, choose, level


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
    kind = named(CompressedWeight, stored["name"])
    if stored["version"] != kind.version:
        raise ValueError(
            f"{stored['name']} has version {stored['version']}; this code reads version {kind.version}"
        )
    return kind.from_state(stored["config"], tensors)


@dataclass(frozen=True, eq=False)
class QuantizedTensor(CompressedWeight):
    """Codes, scales, zeros and column scales of one matrix, as they are stored.

    tensors: `codes` uint8 packed; `scale` (out, in/group), with `scale_range` or `scale_exponent` where needed (`auxiliary.py`);
    `zero` (out, in/group) unless symmetric; `col_scale` (out/tile rows, in) if there is one.
    """

    name: ClassVar[str] = "scalar"

    grid: Grid
    shape: tuple[int, int]
    tensors: dict[str, Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)

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
        """Pack codes and round scales to how the grid stores them.

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
        """Round scales to how the grid stores them, beside codes that are packed already.

        Args:
            scale, zero, col_scale: as for `store`.
            row_scale: (out, in/group_size), by which `scale` is multiplied; None for 1.
        """
        whole = scale if row_scale is None else scale * row_scale
        tensors = {"codes": packed} | auxiliary.store_scale(whole, grid.auxiliary_bits)
        if zero is not None:
            tensors["zero"] = auxiliary.store_zero(zero, grid)
        if col_scale is not None:
            tensors["col_scale"] = col_scale.to(torch.float32 if grid.auxiliary_bits == 32 else torch.float16)
        return cls(grid, shape, tensors, notes or {})

    @classmethod
    def round(cls, weight: Tensor, grid: Grid, notes: Mapping[str, float] | None = None) -> Self:
        """A matrix (out, in), rounded to nearest in float32."""
        weight = weight.float()
        scale, zero = choose(weight, grid)
        return cls.store(assign(weight, scale, zero, grid), grid, scale, zero, notes=notes)

    def codes(self) -> Tensor:
        """uint8 (out, in)."""
        return unpack(self.tensors["codes"], self.grid.bits, self.shape)

    def scale(self) -> Tensor:
        """float32 (out, in / group_size)."""
        return auxiliary.load_scale(self.tensors)

    def zero(self) -> Tensor | float:
        """float32 (out, in / group_size), or the constant of a symmetric grid."""
        return (
            auxiliary.load_zero(self.tensors["zero"], self.grid)
            if "zero" in self.tensors
            else centre(self.grid)
        )

    def col_scale(self) -> Tensor | None:
        """float32 (out / tile rows, in)."""
        return self.tensors["col_scale"].float() if "col_scale" in self.tensors else None

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
            "grid": asdict(self.grid) | {"levels": self.grid.levels.name},
            "notes": dict(self.notes),
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        grid = Grid(**(config["grid"] | {"levels": Levels[config["grid"]["levels"]]}))
        rows, columns = config["shape"]
        return cls(grid, (rows, columns), tensors, config["notes"])
