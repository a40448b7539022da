"""Ternary steps: a matrix of weights −α, 0 and α, some columns of which are sums of several such steps.

    W[i, j] ≈ α_1[i, j // group] · s_1[i, j]  +  Σ_{t = 2 … T} α_t[i] · s_t[i, j]          s in −1, 0, 1

The sum is there for salient columns alone; all others have the first step. It is what a ternary neuron fires
that is charged with a weight (SpikeLLM, arXiv 2407.04752: a positive and a negative neuron in one): each step
takes what it fires from what is left. So a product is additions and subtractions of inputs, and one scale for
each group and step.

Stored are the s + 1 of all first steps, then those of all others, five in a byte (`repacked.py`); one bit for
each column, whether it is salient; and float16 scales, those of the steps after the first one for each row:

    bits per weight = 1.6 (1 + share · (T − 1)) + 16/group + 16 (T − 1)/in + 1/out

Not covered: a fast product. The matrix is dequantized for every product.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.common.options import check, number, whole
from sinq.common.reading import entry, notes, options
from sinq.formats import stored_scales
from sinq.formats.base import CompressedWeight, Incompatibility
from sinq.formats.checks import has_numbers, matrix_shape, require_finite, require_names, require_tensor
from sinq.formats.packing import pack, packed_bytes, unpack
from sinq.formats.repacked import WORDS, from_words, to_words
from sinq.formats.rounding import by_group

LEVELS = 3
DIGITS, BITS = WORDS[LEVELS]


@dataclass(frozen=True)
class TernarySteps:
    """The format of a matrix of ternary steps.

    Raises:
        ValueError: an option is out of its range.
    """

    steps: int = 5
    """Steps T of salient columns; others have one."""
    share: float = 0.1
    """Share of each layer's columns that are salient. 10 % with five steps are 1.4 steps of a weight."""
    group_size: int = 64
    """Consecutive weights of a row that share the scale of their first step."""

    def __post_init__(self) -> None:
        check(self, "format", steps=whole(1, 64), share=number(least=0, most=1), group_size=whole(1))

    @property
    def label(self) -> str:
        """ "ternary T5 10% g64"."""
        return f"ternary T{self.steps} {100 * self.share:.4g}% g{self.group_size}"

    def tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        return 1, shape[1]

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        if shape[1] % self.group_size == 0:
            return None
        sizes = ", ".join(str(g) for g in range(1, min(shape[1], 128) + 1) if shape[1] % g == 0)
        return Incompatibility(f"group_size={self.group_size} does not divide", f"take {sizes}")

    def shrunk(self, shape: tuple[int, int]) -> "TernarySteps | None":
        """Return this format with the largest group that divides the inputs."""
        return replace(self, group_size=max(g for g in range(1, self.group_size + 1) if shape[1] % g == 0))


@dataclass(frozen=True, eq=False)
class TernaryTensor(CompressedWeight):
    """Ternary steps of one matrix, as they are stored.

    tensors: `codes` uint8, words of the first steps; `salient_codes` uint8, words of the others (step, row,
    salient column), where there are any; `salient` uint8, a bit for each column; `scale` float16 (out, groups
    + T − 1), with `scale_exponent` where needed.

    Raises:
        ValueError: the tensors are not those of the format and the shape, or numbers are not possible.
    """

    name: ClassVar[str] = "ternary"

    format: TernarySteps
    shape: tuple[int, int]
    columns: int
    """Number of salient columns."""
    tensors: dict[str, Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors, (rows, columns) = self.tensors, self.shape
        if (misfit := self.format.incompatibility(self.shape)) is not None:
            raise ValueError(f"{misfit.reason} {rows}×{columns}; {misfit.accepted}")
        counts = {"codes": rows * columns} | ({"salient_codes": self._later} if self._later else {})
        require_names(self.name, tensors, (*counts, "salient", "scale"), ("scale_exponent",))
        for name, count in counts.items():
            require_tensor(name, tensors[name], torch.uint8, (packed_bytes(-(-count // DIGITS), BITS),))
        require_tensor("salient", tensors["salient"], torch.uint8, (packed_bytes(columns, 1),))
        scales = rows, columns // self.format.group_size + self.format.steps - 1
        stored_scales.require_scale(tensors, scales, 16)
        if has_numbers(tensors):
            self._require_numbers(counts)

    def _require_numbers(self, counts: Mapping[str, int]) -> None:
        """Raise `ValueError` if numbers of the tensors are not possible."""
        for name in counts:
            if (largest := int(self.tensors[name].max())) >= LEVELS**DIGITS:
                raise ValueError(f"{name} has a word {largest}; words are below {LEVELS**DIGITS}")
        if (found := int(self.salient().sum())) != self.columns:
            raise ValueError(f"salient has {found} columns; it must have {self.columns}")
        require_finite(self.tensors)
        stored_scales.require_finite_scale(self.tensors)

    @property
    def _later(self) -> int:
        """Number of codes of steps after the first."""
        return (self.format.steps - 1) * self.shape[0] * self.columns

    @classmethod
    def store(
        cls,
        spikes: Tensor,
        salient: Tensor,
        scale: Tensor,
        format: TernarySteps,
        notes: Mapping[str, float] | None = None,
    ) -> Self:
        """Pack spikes, and round scales to float16.

        Args:
            spikes: int8 (steps, out, in), −1, 0 or 1; those of later steps count in salient columns alone.
            salient: bool (in,).
            scale: float32 (out, groups + steps − 1), above 0.
        """
        codes = (spikes + 1).to(torch.uint8)
        tensors = {"codes": to_words(codes[0], LEVELS), "salient": pack(salient.to(torch.uint8), 1)}
        if (later := codes[1:, :, salient]).numel():
            tensors["salient_codes"] = to_words(later, LEVELS)
        tensors |= stored_scales.store_scale(scale, 16)
        shape = (spikes.shape[1], spikes.shape[2])
        return cls(format, shape, int(salient.sum()), tensors, notes or {})

    @property
    def group_size(self) -> int:
        return self.format.group_size

    def salient(self) -> Tensor:
        """Return True for each salient column, (in,)."""
        return unpack(self.tensors["salient"], 1, (self.shape[1],)).bool()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scale, groups = stored_scales.load_scale(self.tensors), self.shape[1] // self.format.group_size
        first = from_words(self.tensors["codes"], LEVELS, self.shape).float() - 1
        matrix = (by_group(first, self.format.group_size) * scale[:, :groups, None]).reshape(self.shape)
        if self._later:
            steps = self.format.steps - 1
            rows = (steps * self.shape[0], self.columns)
            later = from_words(self.tensors["salient_codes"], LEVELS, rows).float() - 1
            of_rows = later.unflatten(0, (steps, -1)) * scale[:, groups:].T[..., None]
            matrix = matrix.index_add(1, self.salient().nonzero()[:, 0], of_rows.sum(0))
        return matrix.to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def config(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "format": asdict(self.format),
            "columns": self.columns,
            "notes": dict(self.notes),
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        shape = matrix_shape(entry(config, "shape", list))
        format = TernarySteps(**options(TernarySteps, entry(config, "format", dict), "ternary format"))
        columns = entry(config, "columns", int)
        if not 0 <= columns <= shape[1]:
            raise ValueError(f"columns is {columns}; it must be between 0 and {shape[1]}")
        return cls(format, shape, columns, tensors, notes(entry(config, "notes", dict)))
