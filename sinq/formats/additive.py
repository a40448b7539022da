"""The value of additive quantization: packed codes, codebooks and row scales of one matrix.

`codebooks.py` has the formula. Codes are stored as (out, in/g, M), row by row. Codes of up to 8 bits are
one stream of B bits each (`packing.py`). Longer codes are split: their low bytes are one tensor and their
remaining bits another, so a code of 12 bits costs 12 bits.

Codebooks and scales are float16. Weights so small or so large that the scales would leave float16's full
precision are stored with an exponent common to all rows, one more byte.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.common.reading import entry, notes, options
from sinq.formats.base import CompressedWeight
from sinq.formats.checks import HALF, has_numbers, matrix_shape, require_finite, require_names, require_tensor
from sinq.formats.codebooks import Codebooks
from sinq.formats.packing import pack, packed_bytes, unpack
from sinq.formats.stored_scales import require_exponent, require_finite_scale

BYTE = 8
EXPONENTS = (-8, 14)
"""Exponents of the largest scale, first included and last not, at which scales are stored unchanged. Scales
up to 2⁶ smaller then keep float16's full precision."""


@dataclass(frozen=True, eq=False)
class AdditiveTensor(CompressedWeight):
    """Codes, codebooks and scales of one matrix, as they are stored.

    tensors: `codes` uint8 packed, and `codes_high` for codes of more than 8 bits; `codebooks` float16
    (M, 2^B, g); `scale` float16 (out,), with `scale_exponent` where needed.

    Raises:
        ValueError: the tensors are not those of the format and the shape, or numbers are not finite.
    """

    name: ClassVar[str] = "additive"

    format: Codebooks
    shape: tuple[int, int]
    tensors: dict[str, Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors, format, (rows, columns) = self.tensors, self.format, self.shape
        if columns % format.group:
            raise ValueError(f"group={format.group} does not divide {columns} columns")
        bits, count = format.bits_per_codebook, rows * (columns // format.group) * format.codebooks
        high = ("codes_high",) if bits > BYTE else ()
        require_names(self.name, tensors, ("codes", *high, "codebooks", "scale"), ("scale_exponent",))
        require_tensor("codes", tensors["codes"], torch.uint8, (packed_bytes(count, min(bits, BYTE)),))
        if high:
            shape = (packed_bytes(count, bits - BYTE),)
            require_tensor("codes_high", tensors["codes_high"], torch.uint8, shape)
        books = (format.codebooks, format.vectors, format.group)
        require_tensor("codebooks", tensors["codebooks"], HALF, books)
        require_tensor("scale", tensors["scale"], HALF, (rows,))
        require_exponent(tensors)
        if has_numbers(tensors):
            require_finite(tensors)
            require_finite_scale(tensors)

    @classmethod
    def store(
        cls,
        codes: Tensor,
        codebooks: Tensor,
        scale: Tensor,
        format: Codebooks,
        notes: Mapping[str, float] | None = None,
    ) -> Self:
        """Pack codes, and round codebooks and scales.

        Args:
            codes: integers (out, in / g, M) below 2^B.
            codebooks: floating (M, 2^B, g).
            scale: floating (out,), ≥ 0.
        """
        bits, shape = format.bits_per_codebook, (codes.shape[0], codes.shape[1] * format.group)
        tensors = {"codes": pack((codes & 255).to(torch.uint8), min(bits, BYTE))}
        if bits > BYTE:
            tensors["codes_high"] = pack((codes >> BYTE).to(torch.uint8), bits - BYTE)
        tensors["codebooks"] = codebooks.to(torch.float16)
        largest = scale.abs().amax().item()
        exponent = int(torch.tensor(largest).log2().floor()) if largest > 0 else 0
        exponent = 0 if EXPONENTS[0] <= exponent < EXPONENTS[1] else exponent
        tensors["scale"] = (scale.float() * 2.0**-exponent).to(torch.float16)
        if exponent:
            tensors["scale_exponent"] = torch.tensor([exponent], dtype=torch.int8, device=scale.device)
        return cls(format, shape, tensors, notes or {})

    @property
    def group_size(self) -> int:
        return self.format.group

    def codes(self) -> Tensor:
        """Return the codes, int64 (out, in / g, M)."""
        bits = self.format.bits_per_codebook
        shape = (self.shape[0], self.shape[1] // self.format.group, self.format.codebooks)
        codes = unpack(self.tensors["codes"], min(bits, BYTE), shape).long()
        if bits > BYTE:
            codes = codes | unpack(self.tensors["codes_high"], bits - BYTE, shape).long() << BYTE
        return codes

    def codebooks(self) -> Tensor:
        """Return the codebooks, float32 (M, 2^B, g)."""
        return self.tensors["codebooks"].float()

    def scale(self) -> Tensor:
        """Return the scale of each row, float32 (out,)."""
        scale = self.tensors["scale"].float()
        if "scale_exponent" in self.tensors:
            scale = scale * torch.exp2(self.tensors["scale_exponent"].float())
        return scale

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (summed(self.codes(), self.codebooks()).reshape(self.shape) * self.scale()[:, None]).to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "format": asdict(self.format), "notes": dict(self.notes)}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        format = Codebooks(**options(Codebooks, entry(config, "format", dict), "format"))
        shape = matrix_shape(entry(config, "shape", list))
        return cls(format, shape, tensors, notes(entry(config, "notes", dict)))


def summed(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Return Σ_m codebooks[m, codes[…, m]], differentiable in the codebooks.

    Args:
        codes: integers (…, M).
        codebooks: floating (M, 2^B, g).

    Returns:
        sums of vectors (…, g).
    """
    count, vectors, width = codebooks.shape
    first = torch.arange(count, device=codes.device) * vectors
    rows = (codes + first).reshape(-1, count)
    table = codebooks.reshape(-1, width)
    return torch.nn.functional.embedding_bag(rows, table, mode="sum").reshape(*codes.shape[:-1], width)
