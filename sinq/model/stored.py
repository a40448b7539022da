"""Modules whose buffers are stored numbers: codes, scales, zeros."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Self

from torch import Tensor, nn


class StoredNumbers(nn.Module):
    """A module with buffers that a file keeps bit for bit.

    A cast such as `model.half()` does not change them: they are stored numbers, not activations.
    """

    @abstractmethod
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold tensors of a file, one for each buffer, by name.

        Raises:
            ValueError: they are not what the module stores.
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move_only, recurse)
        return self
