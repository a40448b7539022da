"""The interface of a format of another project: what its configuration states, and its matrices decoded."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from sinq.checkpoint.foreign.parts import Parts
from sinq.common.reading import typed


class ForeignFormat(ABC):
    """A format in which another project stores quantized matrices; a value, made from what files state."""

    codes: ClassVar[str]
    """Last part of the name of the tensor that holds the codes of a layer."""
    others: ClassVar[tuple[str, ...]]
    """Last parts of the names of its other tensors."""

    @classmethod
    @abstractmethod
    def stated(cls, folder: Path, options: Mapping[str, Any]) -> Self:
        """Return the format that the `quantization_config` of a folder states.

        Raises:
            ValueError: an option is missing, of another type, or not read here.
        """

    @property
    @abstractmethod
    def label(self) -> str:
        """Name and options for people: "gptq 4-bit g128"."""

    @abstractmethod
    def decode(self, layer: str, tensors: Mapping[str, Tensor]) -> Parts:
        """Return the parts of one matrix.

        Args:
            layer: name of the layer in the files.
            tensors: the stored tensors of the layer by the last parts of their names.

        Raises:
            ValueError: tensors are missing, or do not fit each other.
        """


def layer_tensors(format: ForeignFormat, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return, for each quantized layer of a checkpoint, the stored name of each of its tensors.

    Args:
        names: of all stored tensors.
    """
    names = list(names)
    found: dict[str, dict[str, str]] = {
        name.removesuffix(f".{format.codes}"): {} for name in names if name.endswith(f".{format.codes}")
    }
    known = sorted((format.codes, *format.others), key=len, reverse=True)
    for name in names:
        last = next((last for last in known if name.endswith(f".{last}")), None)
        if last is not None and (layer := name.removesuffix(f".{last}")) in found:
            found[layer][last] = name
    return found


def require(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor of a layer.

    Raises:
        ValueError: it is missing.
    """
    if name not in tensors:
        raise ValueError(f"{name} is missing beside {', '.join(tensors)}")
    return tensors[name]


def matrix(
    tensors: Mapping[str, Tensor], name: str, dtypes: tuple[Any, ...], rows: int | None, columns: int | None
) -> Tensor:
    """Return a matrix of a layer that has one of these types, and so many rows and columns.

    Args:
        rows, columns: None for any.

    Raises:
        ValueError: it is missing, or is another one.
    """
    found = require(tensors, name)
    wanted = "×".join("any" if size is None else str(size) for size in (rows, columns))
    fits = found.ndim == 2 and found.numel() > 0 and found.dtype in dtypes
    if not fits or any(
        size not in (None, has) for size, has in zip((rows, columns), found.shape, strict=True)
    ):
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        kind = str(found.dtype).removeprefix("torch.")
        raise ValueError(f"{name} is {kind} {list(found.shape)}; it must be {kinds} of {wanted}")
    return found


def group_word(size: int | None) -> str:
    """Return a group size for a label; None or −1 is a whole row."""
    return "by row" if size in (None, -1) else f"g{size}"


def stated_number(options: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a whole number of a configuration.

    Raises:
        ValueError: it is missing, and has no default; or is of another type.
    """
    value = options.get(name, default)
    return typed(value, int, name)
