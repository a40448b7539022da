"""Files of tensors in a folder: which they are, what their headers say, and what they hold.

A checkpoint has one file, or several with an index that maps each tensor to a file. Everything here is data
from elsewhere: names stay in the folder (`common/inside.py`), and what cannot be read is a one-line error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sinq.common.inside import exists, regular_file
from sinq.common.reading import entry, read_json, typed

T = TypeVar("T")
TENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
LISTED = 3
"""Number of things that an error names."""


def unfit(
    where: object,
    model: str,
    missing: Iterable[str],
    unknown: Iterable[str],
    misshapen: Mapping[str, tuple[str, ...]],
) -> str:
    """Return the message for files that do not fit their architecture.

    Args:
        where: the folder, or the hub's name of the model.
        model: name of the model's class.
        missing: names of tensors that the model has and the files have not.
        unknown: names of tensors that only the files have.
        misshapen: what a tensor is in the files, and in the model, by name.
    """
    shapes = [
        f"{name} {found}, which is {wanted} in the model" for name, (found, wanted) in misshapen.items()
    ]
    parts = {
        "missing": sorted(missing),
        "not of the model": sorted(unknown),
        "of another shape": sorted(shapes),
    }
    listed = [f"{what} {_first(names)}" for what, names in parts.items() if names]
    return f"the files of {where} do not fit {model}: {'; '.join(listed)}"


def _first(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: the only file, or the shards of its index.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there are both, of which readers would choose differently; the index is no index; or it
            names something outside the folder.
    """
    if not exists(folder, INDEX):
        return [regular_file(folder, TENSORS)]
    path = regular_file(folder, INDEX)
    try:
        shards = entry(read_json(path), "weight_map", dict).values()
        names = sorted({typed(name, str, "the name of a file") for name in shards})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if exists(folder, TENSORS) and names != [TENSORS]:
        raise ValueError(
            f"{folder} has {TENSORS} and {INDEX}, which names other files: a model and an older save of one;"
            " delete one of them"
        )
    try:
        return [regular_file(folder, name) for name in names]
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}; {INDEX} lists it") from error


@dataclass(frozen=True)
class Header:
    """Type and shape of a stored tensor."""

    dtype: str
    """As safetensors spells it: F16, BF16, U8 …"""
    shape: list[int]


def stored_shapes(folder: Path) -> dict[str, Header]:
    """Return type and shape of every tensor of a folder, from the headers of its files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or two have a tensor of one name.
    """
    return _of_files(folder, _headers)


def _headers(path: Path) -> dict[str, Header]:
    with opened(path) as file:
        pieces = {name: file.get_slice(name) for name in list(file.keys())}
        return {name: Header(piece.get_dtype(), piece.get_shape()) for name, piece in pieces.items()}


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder, as views of its files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or two have a tensor of one name.
    """
    return _of_files(folder, tensors_of)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return the file of every tensor of a folder; raises as `all_tensors` does."""
    return _of_files(folder, lambda path: dict.fromkeys(_headers(path), path))


def _of_files(folder: Path, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """Return what `read` returns of every weight file of a folder, by the names of the tensors.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or two have a tensor of one name.
    """
    found: dict[str, T] = {}
    for path in weight_files(folder):
        of_file = read(path)
        _refuse_twice(found, of_file, path)
        found |= of_file
    return found


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file, as views of it, or raise `ValueError` if it is damaged."""
    with opened(path) as file:
        return {key: _tensor(file, key, path) for key in list(file.keys())}


def _tensor(file: Any, key: str, path: Path) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(key)
    except (SafetensorError, AttributeError, RuntimeError, TypeError) as error:  # a type that torch lacks
        raise ValueError(f"{path} cannot be read: {key} is {error}") from error
    return tensor


def _refuse_twice(found: Mapping[str, object], more: Mapping[str, object], path: Path) -> None:
    if twice := sorted(found.keys() & more.keys()):
        raise ValueError(f"{path} has {_first(twice)}, which another file has too")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield a safetensors file, memory-mapped.

    Raises:
        ValueError: the file is truncated or no safetensors file; the message names it.
    """
    try:
        file = safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}; it is incomplete or damaged") from error
    with file:
        yield file
