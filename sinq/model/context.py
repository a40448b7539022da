"""Circumstances of a compression: how it is carried out, and what is done to the model around it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from sinq.common.progress import Progress, silent
from sinq.common.tensor_store import TensorStore
from sinq.model.layer_inputs import LayerInputs
from sinq.model.linear import CompressedLinear
from sinq.model.targets import Layers, Target


class PlannedInputs(Protocol):
    """Treatment of the inputs of compressed layers by a method around the one that compresses them."""

    @property
    def static(self) -> bool:
        """True if its numbers are only known once the weights are compressed."""

    def of_block(
        self, layers: Sequence[Target], run: Callable[[], None], device: torch.device
    ) -> Mapping[nn.Module, LayerInputs]:
        """Return what the inputs of some layers of a block will be, by module of the dense layer.

        Args:
            layers: dense, and behind blocks that are compressed already.
            run: runs the dense block on all its inputs.
        """

    def attached(self, block: Any, layers: Mapping[str, CompressedLinear]) -> AbstractContextManager[None]:
        """Let the inputs of compressed layers of a block be what they will be, within the context.

        The numbers that they have at its end are kept for good.

        Args:
            block: the `BlockView` (of a module that imports this one).
            layers: by name.
        """


@dataclass(frozen=True)
class Context:
    """The layers to compress, the device to compute on, the display of progress, and rounding around it."""

    layers: Layers = field(default_factory=Layers)
    """By default all but the output head."""
    device: torch.device | str | None = None
    """Device that holds one layer or block at a time; by default the model's device."""
    progress: Progress = silent
    """Function that wraps an iterable to show its progress."""
    states: TensorStore | None = None
    """Store of the states of unfinished training, from which a killed process goes on; None for no store."""
    inputs: PlannedInputs | None = None
    """What a method around this one will do to the inputs of compressed layers; None where they stay as they
    are. Methods that train do so with these inputs; others need not know."""

    def device_for(self, model: nn.Module) -> torch.device:
        """Return the device, or that of `model` if it is None."""
        return next(model.parameters()).device if self.device is None else torch.device(self.device)
