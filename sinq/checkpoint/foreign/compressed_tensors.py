"""Checkpoints of compressed-tensors (llm-compressor, vLLM) in the format `pack-quantized`: whole codes.

    weight_packed     int32 (out, ⌈in · bits / 32⌉)        codes, the lowest bit of a word first
    weight_scale      (out, in / group)
    weight_zero_point int32 (⌈out · bits / 32⌉, in / group)  packed along the outputs; only if asymmetric
    weight_shape      int64 (2,)                           out, in

Codes in the file are the signed ones + 2^(bits − 1), and so are zeros. Since version 0.17 a code may lie
across two words; before, a word had 32 // bits whole codes. That differs for 3, 5 and 6 bits, and shows in
the number of words. A configuration may have several groups of layers with other bits; a layer's are those
that fit its words.

Not covered: rounded inputs, other formats of the library, order of columns (`weight_g_idx`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from sinq.checkpoint.foreign.base import ForeignFormat, matrix, require, stated_number
from sinq.checkpoint.foreign.gptq import FLOATS, WORDS
from sinq.checkpoint.foreign.parts import Parts, spaced_words, unpack_words
from sinq.common.reading import entry, shown

FORMAT = "pack-quantized"
STRATEGIES = ("group", "channel", "tensor")


@dataclass(frozen=True)
class CompressedTensors(ForeignFormat):
    """The format of compressed-tensors."""

    codes: ClassVar[str] = "weight_packed"
    others: ClassVar[tuple[str, ...]] = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")

    schemes: tuple[tuple[int, str], ...]
    """Bits of each group of layers, and the word for what shares a scale."""

    @classmethod
    def stated(cls, folder: Path, options: Mapping[str, Any]) -> Self:
        if (found := options.get("format")) != FORMAT:
            raise ValueError(f"format is {shown(found)}; {FORMAT} is read")
        groups = entry(options, "config_groups", dict)
        if not groups:
            raise ValueError("config_groups is empty")
        return cls(tuple(dict.fromkeys(_scheme(name, group) for name, group in groups.items())))

    @property
    def label(self) -> str:
        return "compressed-tensors " + ", ".join(f"{bits}-bit {shares}" for bits, shares in self.schemes)

    def decode(self, layer: str, tensors: Mapping[str, Tensor]) -> Parts:
        rows, columns = _shape(require(tensors, "weight_shape"))
        words = matrix(tensors, "weight_packed", WORDS, rows, None)
        if "weight_g_idx" in tensors:
            raise ValueError("weight_g_idx puts inputs into groups in another order, which is not read")
        bits, unpacked = self._layout(words.shape[1], rows, columns)
        scale = _scale(require(tensors, "weight_scale"), rows)
        zero = None
        if "weight_zero_point" in tensors:
            count = _words(rows, bits, unpacked)
            packed = matrix(tensors, "weight_zero_point", WORDS, count, scale.shape[1])
            zero = unpacked(packed.T, bits, rows).T
        return Parts(bits, unpacked(words, bits, columns), scale, zero)

    def _layout(self, words: int, rows: int, columns: int) -> tuple[int, Any]:
        """Return the bits of a layer, and the function that unpacks its words."""
        fitting = [
            (bits, unpacked)
            for bits in dict.fromkeys(bits for bits, _ in self.schemes)
            for unpacked in ((unpack_words,) if 32 % bits == 0 else (unpack_words, spaced_words))
            if _words(columns, bits, unpacked) == words
        ]
        if len(fitting) != 1:
            stated = ", ".join(str(bits) for bits, _ in self.schemes)
            kinds = "no layout" if not fitting else "several layouts"
            raise ValueError(
                f"weight_packed has {words} words for {columns} codes, which fits {kinds} of {stated} bits"
            )
        return fitting[0]


def _words(count: int, bits: int, unpacked: Any) -> int:
    """Return the number of words of so many codes."""
    return -(-count * bits // 32) if unpacked is unpack_words else -(-count // (32 // bits))


def _scheme(name: str, group: Any) -> tuple[int, str]:
    """Return the bits of a group of layers, and what shares a scale.

    Raises:
        ValueError: codes are not whole numbers, inputs are rounded, or bits are not packed.
    """
    weights = entry(group, "weights", dict)
    kind, strategy = weights.get("type", "int"), weights.get("strategy", "group")
    if kind != "int" or strategy not in STRATEGIES:
        raise ValueError(
            f"{name} has weights of type {shown(kind)} and strategy {shown(strategy)};"
            f" int with {', '.join(STRATEGIES)} is read"
        )
    if group.get("input_activations") is not None:
        raise ValueError(f"{name} rounds the inputs of layers (input_activations), which is not read")
    bits = stated_number(weights, "num_bits")
    if not 1 <= bits <= 8:
        raise ValueError(f"{name} has num_bits={bits}; 1 to 8 are packed")
    if strategy == "group":
        return bits, f"g{stated_number(weights, 'group_size')}"
    return bits, "by row" if strategy == "channel" else "by matrix"


def _shape(stored: Tensor) -> tuple[int, int]:
    """Return the shape that is stored beside a matrix."""
    if stored.shape != (2,) or stored.is_floating_point() or stored.is_complex():
        raise ValueError(f"weight_shape is {stored.dtype} {list(stored.shape)}; it must be two whole numbers")
    rows, columns = (int(number) for number in stored)
    if rows < 1 or columns < 1:
        raise ValueError(f"weight_shape is {rows}×{columns}; it must be above 0")
    return rows, columns


def _scale(stored: Tensor, rows: int) -> Tensor:
    """Return scales (rows, groups); one for the whole matrix is repeated."""
    if stored.numel() == 1 and rows > 1 and stored.dtype in FLOATS:
        return stored.reshape(1, 1).expand(rows, 1)
    return matrix({"weight_scale": stored}, "weight_scale", FLOATS, rows, None)
