"""Execution options of a compression; they do not change the result of a method on a matrix."""

from dataclasses import dataclass, field

import torch
from torch import nn

from sinq.common.progress import Progress, silent
from sinq.common.tensor_store import TensorStore
from sinq.model.targets import Layers


@dataclass(frozen=True)
class Context:
    """The layers to compress, the device to compute on, and the display of progress."""

    layers: Layers = field(default_factory=Layers)
    """By default all but the output head."""
    device: torch.device | str | None = None
    """Device that holds one layer or block at a time; by default the model's device."""
    progress: Progress = silent
    """Function that wraps an iterable to show its progress."""
    states: TensorStore | None = None
    """Store of the states of unfinished training, from which a killed process goes on; None for no store."""

    def device_for(self, model: nn.Module) -> torch.device:
        """Return the device, or that of `model` if it is None."""
        return next(model.parameters()).device if self.device is None else torch.device(self.device)
