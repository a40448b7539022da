"""A GGUF file: named keys, then a list of tensors, then their bytes; version 3, little endian.

    magic "GGUF" · version · number of tensors · number of keys
    each key: name, type, value
    each tensor: name, number of dimensions, dimensions from the innermost out, type, offset
    zeros up to a multiple of 32; the tensors, each padded likewise

Tensors are asked for one part at a time while the file is written, so one part is in memory.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import IO

from torch import Tensor

from sinq.common.progress import Progress, silent
from sinq.export.gguf.blocks import BlockType

ALIGNMENT = 32
Value = bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
"""Numbers of the types of values."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file, whose bytes are made when they are written."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    """Outermost dimension first, as in torch."""
    parts: Callable[[], Iterable[Tensor]]
    """Function that yields the bytes in order, contiguous uint8 tensors on the CPU; in sum `nbytes`."""

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


def write(
    file: IO[bytes], keys: Mapping[str, Value], entries: Sequence[Entry], progress: Progress = silent
) -> None:
    """Write a GGUF file.

    Raises:
        ValueError: an entry has another number of bytes than its shape and type say.
    """
    header = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(keys))
    header += b"".join(_string(name) + _typed(value) for name, value in keys.items())
    header += b"".join(_described(entries))
    file.write(header + _padding(len(header)))
    for entry in progress(entries, "writing tensors", len(entries)):
        written = sum(file.write(part.numpy().data) for part in entry.parts())
        if written != entry.nbytes:
            raise ValueError(
                f"{entry.name} has {written} bytes; {entry.kind.name} {entry.shape} has {entry.nbytes}"
            )
        file.write(_padding(written))


def _described(entries: Sequence[Entry]) -> Iterable[bytes]:
    """Yield the description of each tensor, with its offset from where the tensors begin."""
    offset = 0
    for entry in entries:
        dimensions = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
        yield _string(entry.name) + dimensions + struct.pack("<IQ", entry.kind.number, offset)
        offset += entry.nbytes + len(_padding(entry.nbytes))


def _padding(length: int) -> bytes:
    return bytes(-length % ALIGNMENT)


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _typed(value: Value) -> bytes:
    """Return the type and the bytes of a value; those of a list have the type of its elements."""
    if isinstance(value, str | bool | int | float):
        kind = _kind(value)
        return struct.pack("<I", kind) + _plain(value, kind)
    kind = _kind(value[0])
    kind = INT32 if kind == UINT32 else kind
    head = struct.pack("<IIQ", ARRAY, kind, len(value))
    return head + b"".join(_plain(each, kind) for each in value)


def _kind(value: Value) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return UINT32
    return FLOAT32 if isinstance(value, float) else STRING


FORMATS = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}


def _plain(value: str | bool | int | float, kind: int) -> bytes:
    return _string(value) if isinstance(value, str) else struct.pack(FORMATS[kind], value)
