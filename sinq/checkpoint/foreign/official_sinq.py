"""Checkpoints of the official SINQ package (0.2): 2, 3, 4, 5, 6 and 8 bits, 1-D and 2-D tiling, NF4, NF3.

A layer has tensors, and an entry in `model.safetensors.index.json.meta.json`, the *sidecar*, with what is no
tensor: bits, shape, packing, method.

    W_q          codes as rows of one group each: row r·(in/g) + k is group k of output r
    meta.scale   (out·in/g, 1), or with 2-D tiling (tiles, g, 1); meta.zero likewise, or a single number
    meta.scale2  (1, in) or (tiles, 1, g): the column scales
                 W = (level(code) − zero) · scale · scale2

Packing joins *rows*: the first half (of 4-bit codes) in the high bits, the second in the low ones, and so on
for the quarters of 2 bits and the tenths, sixths and fifths of an int32 with 3, 5 and 6 bits.

With auxiliaries of 8 bits (`quantAux` in the method's name, which is what the package's `sinq` means) a scale
is x·s + m, with x in bytes, and a range (s, m) for each 32nd part. Zeros have one range for the matrix, so
they are no whole numbers. x·s + m is computed in the type of s, as the package does.

The bits are those of the sidecar, the group that of the codes: the package halves a group that does not
divide a matrix, and its `group_size` stays as asked. A method whose name says more (hqq, awq) is stored in
the same form. Not covered: codes that are viewed as floats, one file `qmodel.pt`, and fused experts: the
package (0.2.0) computes with them, but what it saves is without them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.checkpoint.foreign.base import ForeignFormat, group_word, matrix, require
from sinq.checkpoint.foreign.parts import Parts
from sinq.checkpoint.weight_files import INDEX, tensor_files
from sinq.common.inside import exists, regular_file
from sinq.common.reading import counts, entry, read_json, shown
from sinq.formats.checks import matrix_shape
from sinq.formats.grid import Levels

SIDECAR = f"{INDEX}.meta.json"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
FUSED = re.compile(r"\.experts\.(gate_up|down)_(W_q|meta)\.")
"""Pattern of tensors that the package's fused experts would have, if it saved them: `gate_up_W_q.3`."""
LEVELS = {"nf4": Levels.nf4, "nf3": Levels.nf3}


@dataclass(frozen=True)
class Packing:
    """The way codes of some bits are joined: the number of parts in a word, and the word's type."""

    name: str
    parts: int
    dtype: torch.dtype


PACKINGS = {
    2: Packing("2bit_u8", 4, torch.uint8),
    3: Packing("3bit_32", 10, torch.int32),
    4: Packing("4bit_u8", 2, torch.uint8),
    5: Packing("5bit_32", 6, torch.int32),
    6: Packing("6bit_32", 5, torch.int32),
    8: Packing("8bit_u8", 1, torch.uint8),
}


@dataclass(frozen=True)
class OfficialSINQ(ForeignFormat):
    """The format of the official package."""

    codes: ClassVar[str] = "W_q"
    others: ClassVar[tuple[str, ...]] = tuple(
        f"meta.{name}{part}" for name in ("scale", "zero", "scale2") for part in ("", ".x", ".s", ".m")
    )

    bits: int
    """Bits of the first layer."""
    group_size: int
    method: str
    tiling: str
    sidecar: Mapping[str, Any]
    """By layer."""

    @classmethod
    def stated(cls, folder: Path, options: Mapping[str, Any]) -> Self:
        if not exists(folder, SIDECAR):
            raise ValueError(
                f"{SIDECAR} is missing, which has bits and shapes of the layers;"
                " a folder that sinq.save wrote is loaded by sinq.load"
            )
        if fused := next(filter(FUSED.search, tensor_files(folder)), None):
            raise ValueError(
                f"{fused} is of fused experts, which are not read; quantize the dense model here"
                " (SINQ().compress, or transformers' SinqConfig), or take one whose experts are layers"
            )
        sidecar = read_json(regular_file(folder, SIDECAR))
        if not isinstance(sidecar, dict) or not sidecar:
            raise ValueError(f"{SIDECAR} has no layers")
        meta = entry(next(iter(sidecar.values())), "meta", dict)
        bits, group = entry(meta, "nbits", int), entry(meta, "group_size", int)
        tiling = str(options.get("tiling_mode", "1D"))
        return cls(bits, group, entry(meta, "method", str), tiling, sidecar)

    @property
    def label(self) -> str:
        return f"official {self.method} {self.bits}-bit {group_word(self.group_size)} {self.tiling}"

    def decode(self, layer: str, tensors: Mapping[str, Tensor]) -> Parts:
        meta = entry(entry(self.sidecar, layer, dict), "meta", dict)
        rows, columns = matrix_shape(entry(meta, "shape", list))
        bits, method = entry(meta, "nbits", int), entry(meta, "method", str)
        codes = _codes(require(tensors, "W_q"), bits, meta, rows * columns)
        group = codes.shape[1]
        if columns % group:
            raise ValueError(f"W_q has rows of {group} codes, which do not divide the {columns} inputs")
        whole = codes.reshape(rows, columns)
        scale, order = _scale(tensors, meta, (rows, columns), group)
        zero = _zero(tensors, meta, scale, order)
        levels = next((levels for name, levels in LEVELS.items() if name in method.lower()), Levels.uniform)
        return Parts(bits, whole, order(scale), zero, _columns(tensors, (rows, columns), group), levels)


def _codes(words: Tensor, bits: int, meta: Mapping[str, Any], count: int) -> Tensor:
    """Return the codes as rows of one group each, uint8 (count / group, group)."""
    packing = PACKINGS.get(bits)
    if packing is None or meta.get("packing", packing.name) != packing.name or meta.get("view_as_float"):
        raise ValueError(
            f"nbits={bits}, packing={shown(meta.get('packing'))}, view_as_float={meta.get('view_as_float')}"
            f" are not read; known are {', '.join(f'{b}: {p.name}' for b, p in PACKINGS.items())}"
        )
    matrix({"W_q": words}, "W_q", (packing.dtype,), None, None)
    needed, left = divmod(count, words.shape[1])
    if left or len(words) != -(-needed // packing.parts):
        raise ValueError(f"W_q is {list(words.shape)}, which does not hold {count} codes of {bits} bits")
    shifts = [bits * part for part in reversed(range(packing.parts))]
    return torch.cat([((words >> shift) & ((1 << bits) - 1)).to(torch.uint8) for shift in shifts])[:needed]


def _decoded(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return an auxiliary as the package decodes it: the tensor itself, or x·s + m."""
    name = f"meta.{name}"
    if name in tensors:
        found = tensors[name]
    else:
        x, s, m = (require(tensors, f"{name}.{part}") for part in "xsm")
        if x.dtype != torch.uint8 or s.shape != m.shape or x.ndim != 2 or s.shape != (1, x.shape[1]):
            shapes = ", ".join(str(list(part.shape)) for part in (x, s, m))
            raise ValueError(f"{name} has x, s, m of {shapes}; they must be bytes (n, k) and ranges (1, k)")
        found = x * s + m
    if found.dtype not in FLOATS and found.ndim:
        raise ValueError(f"{name} is {found.dtype}; it must be of floats")
    return found


Order = Callable[[Tensor], Tensor]
"""Function from auxiliaries in the order of the files to (out, in / group)."""


def _scale(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], shape: tuple[int, int], group: int
) -> tuple[Tensor, Order]:
    """Return the scales in the order of the files, and the function that brings them into ours."""
    found, (rows, columns) = _decoded(tensors, "scale"), shape
    groups = columns // group
    if found.numel() != rows * groups:
        raise ValueError(f"scale is {list(found.shape)}; the matrix has {rows * groups} groups")
    dimensions = len(counts(meta["scale.shape"], "scale.shape")) if "scale.shape" in meta else found.ndim
    if dimensions == 2:
        return found, lambda numbers: numbers.reshape(rows, groups)
    if dimensions != 3 or rows % group:
        raise ValueError(f"scale has {dimensions} dimensions for {rows}×{columns} in groups of {group}")
    return found, lambda numbers: numbers.reshape(rows // group, groups, group).mT.reshape(rows, groups)


def _zero(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], scale: Tensor, order: Order) -> Tensor:
    """Return the zeros (out, in / group); a single one is for all groups."""
    found = _decoded(tensors, "zero")
    if found.numel() == 1:
        return torch.full_like(order(scale), float(found), dtype=torch.float32)
    if found.numel() != scale.numel():
        raise ValueError(f"zero is {list(found.shape)}; there are {scale.numel()} scales")
    return order(found)


def _columns(tensors: Mapping[str, Tensor], shape: tuple[int, int], group: int) -> Tensor | None:
    """Return the column scales (tiles, in), or None where there are none."""
    if "meta.scale2" not in tensors:
        return None
    found, (rows, columns) = _decoded(tensors, "scale2"), shape
    if found.shape == (1, columns):
        return found
    if rows % group == 0 and found.shape == (rows * columns // group**2, 1, group):
        return found.reshape(rows // group, columns)
    raise ValueError(f"scale2 is {list(found.shape)}, which is for no tiling of {rows}×{columns} by {group}")
