"""Damage done to files, as disks, kills and people do it."""

from collections.abc import Callable
from pathlib import Path


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garbage(file: Path) -> None:
    file.write_bytes(b"\x93garbage {" * 40)


def one_byte(file: Path) -> None:
    """Change the lowest bit of the last byte: a value, not the header of any format."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def zeros(file: Path) -> None:
    """Zero the second half: a length that is right, and a header too."""
    content = file.read_bytes()
    kept = len(content) // 2
    file.write_bytes(content[:kept] + bytes(len(content) - kept))


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


DAMAGES: dict[str, Callable[[Path], None]] = {
    damage.__name__: damage for damage in (cut, empty, garbage, one_byte, zeros, longer)
}
