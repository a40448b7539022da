"""A store of tensors by name, which the library writes to without knowing where it is. A dict is one."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class TensorStore(Protocol):
    """Groups of named tensors, by name of the group."""

    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> Mapping[str, Tensor]: ...
    def __setitem__(self, name: str, tensors: Mapping[str, Tensor], /) -> None: ...
